"""Every mistake groundup reports, as one small tree.

An error says three things: *what* was wrong (with the value), *where* (file, line, key) and *what
to do* (`fix`). The command line prints them without a traceback; the exit code tells a script whose
mistake it was: 2 a user's, 1 a stage that failed or a gate that was not met, 130 an interruption.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class GroundupError(Exception):
    """A failure that a user can understand and act on. `str(error)` is the whole message."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class UserError(GroundupError):
    """A slip of the user's: a wrong flag, path, value or recipe. Nothing was changed."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that cannot be run as it stands."""


class DataError(UserError):
    """Source data that is missing, unreadable, empty or too broken to use."""


class MissingExtra(UserError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, package: str, extra: str, *, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f"pip install 'groundup[{extra}]'",
        )


class ArtifactError(GroundupError):
    """An artefact that is missing, incomplete, edited or of a kind that does not fit."""


class StageFailed(GroundupError):
    """A stage could not finish. What it had reached is kept, and running again continues it."""


class GateFailed(GroundupError):
    """A stage finished, but a requirement the recipe states was not met."""


class Interrupted(GroundupError):
    """The user or the system asked the run to stop; its state is saved."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One mistake among several, before anything is raised."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return str(UserError(self.what, where=self.where, fix=self.fix))


class Mistakes(RecipeError):
    """Several mistakes found in one pass, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        listed = "\n".join(str(problem) for problem in self.problems)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''}\n{listed}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps with an unknown name: the nearest known one, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(names) if names else 'none'}"
