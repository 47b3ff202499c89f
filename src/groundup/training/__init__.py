"""The training loop and its parts. Knows no task and no model."""
