"""YAML with positions: plain data, and for every key the line it stands on.

YAML 1.2 through ruamel.yaml, so `1e-3` is a number and `no` is a word. Slips that YAML answers with
puzzling sentences (an unquoted `*`, a tab, a full-width colon) get one that says what to type.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from groundup.errors import RecipeError, UserError, nearest

HINTS = (
    ("alias", 'text that starts with `*` must be quoted: "*.txt"'),
    ("anchor", "text that starts with `&` must be quoted"),
    ("'\\t'", "indent with spaces; YAML does not allow tabs"),
    ("cannot start any token", "text that starts with `@`, `%` or a backtick must be quoted"),
    ("mapping values are not allowed", "quote a value that contains a colon followed by a space"),
    ("flow mapping", 'close the bracket, and quote text that starts with `{`: "{stdlib}/**/*.py"'),
    ("flow sequence", "close the bracket, and quote text that starts with `[`"),
    ("block mapping", "check the indentation: keys of one mapping start in the same column"),
    ("could not find expected ':'", "write a colon and a space after the key"),
)
WIDE_COLON = "the colon after a key must be the half-width `:`, not `：`"
_WIDE_KEY = re.compile(r"^\s*(?:- )?[\w-]+：")


@dataclass
class Yaml:
    """The content of a YAML file whose top level is a mapping."""

    path: Path
    data: dict[str, Any]
    tree: CommentedMap = field(repr=False)
    overridden: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Yaml:
        """Read a file. Raises UserError if it cannot be read, RecipeError with the line if it is no YAML."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            others = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            fix = nearest(path.name, others) if others else "`groundup init` writes a commented recipe"
            raise UserError("there is no such recipe", where=str(path), fix=fix) from error
        except UnicodeDecodeError as error:
            raise RecipeError("the recipe is not UTF-8 text", where=str(path), fix="save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path) -> Yaml:
        """Parse a text that was read from `path`."""
        try:
            tree = YAML(typ="rt").load(io.StringIO(text))
        except DuplicateKeyError as error:
            raise _at(error, path, text, "remove one of the two") from error
        except YAMLError as error:
            raise _at(error, path, text) from error
        if not isinstance(tree, CommentedMap):
            fix = "`groundup init` writes a commented recipe"
            raise RecipeError(
                "a recipe is a mapping with the keys groundup, name and stages", where=f"{path}:1", fix=fix
            )
        return cls(path, _plain(tree), tree)

    def at(self, key: tuple[str | int, ...]) -> str:
        """`file:line (key)`: the line of the longest part of the key that the file holds."""
        dotted = ".".join(str(part) for part in key)
        for path, text in self.overridden.items():
            if key[: len(path)] == path:
                return f"--set {text}" + (f" ({dotted})" if key != path else "")
        line, node = 0, self.tree
        for part in key:
            try:
                if isinstance(node, CommentedMap):
                    line = node.lc.key(part)[0]
                elif isinstance(node, CommentedSeq):
                    line = node.lc.item(part)[0]
                node = node[part]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return f"{self.path}:{line + 1} ({dotted})" if dotted else f"{self.path}:{line + 1}"

    def line_of(self, where: str) -> int:
        """The line that `at` named; 0 for a place outside the file."""
        line = where.removeprefix(f"{self.path}:").split(" ")[0]
        return int(line) if line.isdigit() else 0

    def override(self, text: str) -> None:
        """Apply `a.b.c=value`; the value is read as YAML. Raises UserError if `a.b` does not exist."""
        dotted, equals, value = text.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            raise UserError(f"--set {text!r} is not KEY=VALUE", fix="--set stages.base.pretrain.tokens=2M")
        node: Any = self.data
        for depth, part in enumerate(path[:-1]):
            if part == "vars" and depth == 0:
                node.setdefault("vars", {})
            if not isinstance(node, dict) or part not in node:
                known = list(node) if isinstance(node, dict) else []
                what = f"--set {text!r}: the recipe has no {'.'.join(path[: depth + 1])!r}"
                raise UserError(what, where=str(self.path), fix=nearest(part, map(str, known)))
            if node[part] is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"--set {text!r}: {'.'.join(path[:-1])!r} is not a mapping", where=str(self.path))
        try:
            node[path[-1]] = _plain(YAML(typ="rt").load(value)) if value.strip() else None
        except YAMLError as error:
            raise UserError(f"--set {text!r}: the value is not YAML", fix=_hint(error)) from error
        self.overridden[path] = text


def _plain(node: Any) -> Any:
    """ruamel's tree as ordinary dicts, lists, strings and numbers."""
    if isinstance(node, Mapping):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _at(error: YAMLError, path: Path, text: str, fix: str = "") -> RecipeError:
    """The parser's complaint with its place, and what to type instead."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = error.problem if isinstance(error, MarkedYAMLError) and error.problem else str(error)
    what = f"not valid YAML: {str(problem).strip()}"
    wide = wide_colon(text, mark.line if mark else None)
    if wide is not None:
        return RecipeError(what, where=f"{path}:{wide + 1}", fix=WIDE_COLON)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    return RecipeError(what, where=where, fix=fix or _hint(error))


def wide_colon(text: str, last: int | None = None) -> int | None:
    """The number, from 0, of the last line up to `last` whose key ends in a full-width colon, if any."""
    lines = text.splitlines()[: None if last is None else last + 1]
    found = [number for number, line in enumerate(lines) if _WIDE_KEY.match(line)]
    return found[-1] if found else None


def _hint(error: YAMLError) -> str:
    message = str(error)
    return next((hint for word, hint in HINTS if word in message), "check quotes, brackets and indentation here")
