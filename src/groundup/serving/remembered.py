"""What an engine was given to serve, so that the next one, after a crash, is given exactly the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from groundup.serving import wire

Given = wire.Load | wire.LoadAdapter
Name = tuple[str, str | None]
"""A model, or a model and an adapter of it."""


class Remembered:
    """Models and adapters by name, as they were asked for, with the digest of what came of it."""

    def __init__(self) -> None:
        self._given: dict[Name, tuple[Given, str]] = {}
        """Models come before their adapters: they were loaded first."""
        self.missing: list[Given] = []
        """What the present engine still has to be given."""

    def add(self, frame: Given, facts: Mapping[str, Any]) -> None:
        """Remember what was loaded."""
        if isinstance(frame, wire.Load):
            # Where the path led, not the path: `runs/RECIPE/STAGE` may be another model by then.
            frame = replace(frame, path=str(facts["folder"]))
        self._given[_name(frame)] = (frame, str(facts["digest"]))

    def forget(self, model: str, adapter: str | None = None) -> None:
        """Forget a model with its adapters, or one adapter."""

        def is_meant(name: Name) -> bool:
            return name[0] == model and adapter in (None, name[1])

        self._given = {name: given for name, given in self._given.items() if not is_meant(name)}
        self.missing = [frame for frame in self.missing if not is_meant(_name(frame))]

    def begin(self) -> None:
        """A new engine is there, which has nothing yet."""
        self.missing = [frame for frame, _ in self._given.values()]

    def found(self, frame: Given) -> None:
        """The engine has it again."""
        self.missing.remove(frame)

    def is_missing(self, model: str, adapter: str | None = None) -> bool:
        """Whether a model (or the adapter of it that is asked for) is still to be loaded again."""
        return any(_name(frame) in ((model, None), (model, adapter)) for frame in self.missing)

    def is_same(self, frame: Given, facts: Mapping[str, Any]) -> bool:
        """Whether what was loaded again is what had been served."""
        return self._given[_name(frame)][1] == str(facts["digest"])


def _name(frame: Given) -> Name:
    return frame.model, frame.adapter if isinstance(frame, wire.LoadAdapter) else None
