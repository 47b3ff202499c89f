"""The HTTP interface: OpenAI's routes and those of the labelled tasks, over an engine that lives elsewhere.

Nothing here imports torch: the front process tokenises, renders and decodes, and asks the engine through
`serving/client.py`.
"""
