"""What can be named in a recipe: one file in one folder is one name.

Dropping a file into `models/`, `tasks/`, … is the whole registration. Other packages add theirs with
an entry point of the group `groundup.plugins`, named `FOLDER.NAME` and pointing at a module. Listing
names imports nothing; a module is imported when its name is used, and a failure inside it surfaces as
itself, never as an unknown name.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from groundup.errors import UserError, nearest

FOLDERS = ("stages", "models", "tasks", "adapters", "compression", "runtimes")
GROUP = "groundup.plugins"


@cache
def names(folder: str) -> list[str]:
    """The names a recipe may use from a folder, sorted; plugins included. Imports nothing."""
    root = Path(__file__).parent / folder
    own = {module.name for module in pkgutil.iter_modules([str(root)]) if not module.name.startswith("_")}
    return sorted(own | set(_plugins(folder)))


def load(folder: str, name: str) -> ModuleType:
    """The module behind a name. Raises UserError for an unknown name."""
    if name not in names(folder):
        raise UserError(f"no {folder.removesuffix('s')} named {name!r}", fix=nearest(name, names(folder)))
    plugin = _plugins(folder).get(name)
    return importlib.import_module(plugin or f"groundup.{folder}.{name}")


def summary(folder: str, name: str) -> str:
    """The first line of the module's docstring."""
    return (load(folder, name).__doc__ or "").strip().splitlines()[0]


@cache
def _plugins(folder: str) -> dict[str, str]:
    found = {}
    for entry in metadata.entry_points(group=GROUP):
        kind, _, name = entry.name.partition(".")
        if kind == folder:
            found[name] = entry.value
    return found
