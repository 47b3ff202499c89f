"""The web pages of a server. They talk to its public HTTP API and nothing else, so they can be replaced."""
