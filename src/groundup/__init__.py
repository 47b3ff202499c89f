"""groundup: large models, from the ground up. One recipe from raw data to a monitored service."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used, so that `import groundup` is quick."""
    import importlib

    homes = {"run": "groundup.runner", "load": "groundup.generation"}
    if name not in homes:
        raise AttributeError(f"module 'groundup' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)
