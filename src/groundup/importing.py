"""`groundup import`: a model from elsewhere into the store, linked under `runs/imported`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from groundup.artifact import Artifact, Store, link
from groundup.checkpoints.imported import bring
from groundup.data.licences import is_restricted
from groundup.errors import UserError
from groundup.places import expand
from groundup.progress import Reporter
from groundup.units import show_count

FOLDER = "imported"


@dataclass(frozen=True)
class Imported:
    """A model that was brought in."""

    artifact: Artifact
    place: Path
    """The link to it."""

    def as_data(self) -> dict[str, Any]:
        """What is printed, as plain data."""
        metrics, licences = self.artifact.metrics, self.artifact.manifest["licences"]
        return {
            "path": str(self.place),
            "digest": self.artifact.digest,
            "family": metrics.get("family"),
            "head": metrics.get("head"),
            "computed_by": metrics.get("computed_by"),
            "parameters": metrics.get("parameters"),
            "context": metrics.get("context"),
            "vocab_size": metrics.get("vocab_size"),
            "tokens": metrics.get("tokens"),
            "licences": licences,
            "restrictions": {name: reason for name, text in licences.items() if (reason := is_restricted(text))},
        }


def import_model(
    path: Path,
    *,
    to: str | None = None,
    licence: str = "",
    store: Store | None = None,
    reporter: Reporter | None = None,
) -> Imported:
    """Bring in the model at a path and link it as `runs/imported/NAME`; its own name unless `to` gives one.

    The path may begin with `{package:NAME}`. Raises UserError for a name that is no file name, and what
    `checkpoints.imported.bring` raises.
    """
    if to is not None and not re.fullmatch(r"[\w][\w.-]*", to):
        raise UserError(f"--to: {to!r} cannot be the name of a link", fix="use letters, digits, dots and dashes")
    artifact = bring(expand(str(path)), store or Store(), licence=licence, reporter=reporter)
    section = artifact.manifest.get("section") or {}
    name = to or re.sub(r"[^\w.-]+", "-", str(section.get("name") or path.resolve().name)).strip("-.") or "model"
    place = Path(os.environ.get("GROUNDUP_RUNS", "runs")) / FOLDER / name
    link(place, artifact)
    return Imported(artifact, place)


def print_imported(console: Console, imported: Imported) -> None:
    """Family, size, tokenizer, licence and digest, one a line, and what to type next."""
    found = imported.as_data()
    parameters = show_count(found["parameters"] or 0)
    tokens = f"{show_count(found['tokens'])} tokens" if found["tokens"] else "none: name one where you use the model"
    licences = [text for _, text in sorted(found["licences"].items())] or ["not stated: find out before you share"]
    console.print(f"family      {found['family']}, {parameters} parameters, context {found['context']}", markup=False)
    if found["computed_by"] == "transformers":
        console.print("computed by transformers: the family has no model file here", markup=False)
    console.print(f"tokenizer   {tokens}", markup=False)
    console.print(f"licence     {', '.join(licences)}", markup=False)
    for reason in found["restrictions"].values():
        console.print(f"            [yellow]note:[/] this licence {reason}")
    console.print(f"digest      {found['digest']}", markup=False)
    console.print(f"linked as {imported.place}", markup=False, soft_wrap=True)
