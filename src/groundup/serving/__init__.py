"""Serving: choosing the next token, stopping in time, and (later) the engine and its HTTP interface."""
