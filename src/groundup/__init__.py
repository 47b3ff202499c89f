"""groundup: large models, from the ground up. One recipe from raw data to a monitored service."""

__version__ = "0.1.0"
