"""Published tests of language models, read from local files: choices, sums, programs.

A suite turns files into questions with prompts, and what a model said into scores; who runs the model is
somebody else. Prompts and normalisations are those of lm-evaluation-harness, so that figures can be
compared with published ones. Nothing is ever fetched.
"""
