"""What a stage can say before it runs: its mistakes, what it will need, and what it will yield.

`plan` walks the stages in order. Each may export two functions beside `run`:

    check(config, inputs) -> list[Mistake]      # no training, no long reading; paths within its section
    forecast(config, inputs, effort) -> Forecast

where `inputs` maps the fields named in `READS` to what is `Known` of them: the section of the stage
that makes them, the finished artefact if it is fresh, and the facts that stage forecast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from groundup.artifact import Artifact
from groundup.config import Section


@dataclass(frozen=True)
class Known:
    """What plan knows of one input of a stage.

    `facts` are by kind. corpus: documents, bytes (per split, dicts), longest_document_bytes,
    sample (a list of some documents' texts), examples (the same documents as whole mappings), licences.
    tokenizer: vocab_size, bytes_per_token. model: parameters, context. They are measured from
    `artifact` when there is one, and estimated from a sample of each source when there is not (`estimated`).
    """

    kind: str
    config: Section | None = None
    artifact: Artifact | None = None
    part: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    estimated: bool = False


@dataclass
class Forecast:
    """What a stage will take and yield, as far as can be told before it runs."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Passed on to the stages that read this one's artefact; see `Known`."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Label and value, as plan prints them: parameters, tokens, FLOPs, every automatic choice, …"""
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """Tables by title, the first row a header: the label ledger."""
    sample: str = ""
    """A rendered training row with its loss mask, as rich markup."""
    seconds: float | None = None
    """Predicted wall time."""
    cpu_s: float | None = None
    """Predicted CPU time, over all threads and processes."""
    peak_bytes: int | None = None
    """Predicted peak memory (resident set, summed over processes)."""
    disk_bytes: int | None = None
    """Predicted size of the artefact and of the state kept while it is made."""
    warnings: list[str] = field(default_factory=list)
    """What deserves a second look but is no mistake."""
    estimated: bool = False
    """Whether it follows from a sample of the sources rather than from prepared data."""
