"""groundup: large models, from the ground up. One recipe from raw data to a monitored service."""

import os

__version__ = "0.1.0"

# GNU's OpenMP, by which torch shares out a step, has threads wait for each other by spinning, for ten times as long as
# this unless told otherwise. When other programs want the cores, the thread that all wait for is not running: a step
# took 10 to 100 times as long, and takes 1 to 20 times so. It is read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used, so that `import groundup` is quick."""
    import importlib

    homes = {"run": "groundup.runner", "load": "groundup.generation"}
    if name not in homes:
        raise AttributeError(f"module 'groundup' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)
