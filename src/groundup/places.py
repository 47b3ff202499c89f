"""Paths as recipes write them: `~` is the home folder, `{stdlib}` the folder of Python's standard library,
and `{package:NAME}` that of an installed Python package, for data and models that pip brings."""

from __future__ import annotations

import os
import re
import sysconfig
from importlib.util import find_spec

from groundup.errors import DataError

_PACKAGE = re.compile(r"\{package:([\w.-]+)\}")


def expand(path: str) -> str:
    """A path as the system knows it: absolute, symbolic links untouched.

    Raises DataError for a package that is not installed.
    """
    if "{stdlib}" in path:
        path = path.replace("{stdlib}", sysconfig.get_path("stdlib"))
    return os.path.abspath(os.path.expanduser(_PACKAGE.sub(_folder, path)))


def _folder(found: re.Match[str]) -> str:
    name = found[1]
    try:
        spec = find_spec(name.replace("-", "_"))
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        what = f"the package {name!r} is not installed"
        raise DataError(what, where=found.string, fix=f"pip install --no-deps {name.replace('_', '-')}")
    return str(spec.submodule_search_locations[0])
