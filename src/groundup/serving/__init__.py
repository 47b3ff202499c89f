"""Sampling now; the engine and server that stand on it later."""
