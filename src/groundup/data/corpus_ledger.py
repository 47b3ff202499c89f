"""The account of a preparation: every row that was read, and what became of it.

Written twice: `ledger.json` for programs, `report.md` for people. Counts always add up: rows read =
bad rows + dropped + kept. Examples name the file and line; where identifiers were redacted they show
the text after redaction, and a row that could not be read is never quoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.data.corpus_clean import EXAMPLES
from groundup.data.sources import Source
from groundup.errors import DataError
from groundup.units import show_bytes


@dataclass
class Ledger:
    """Counts and examples, added up block by block in the order of the sources."""

    rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    per_source: dict[int, Counter[str]] = field(default_factory=dict)

    def add(self, summary: dict[str, Any], source: int, names: Sequence[str], line: int) -> None:
        """Count the summary of a block whose rows are from `names`, after `line` lines of the file."""
        self.rows += summary["rows"]
        for name in ("changed", "redacted", "dropped", "bad"):
            getattr(self, name).update(summary[name])
        counts = {"rows": summary["rows"], "passed": summary["documents"], "bad": sum(summary["bad"].values())}
        self.per_source.setdefault(source, Counter()).update(counts)
        for reason, found in summary["examples"].items():
            for file, own_line, excerpt in found:
                self.example(reason, {"source": f"{names[file]}:{line + own_line}", "excerpt": excerpt})

    def example(self, reason: str, example: dict[str, str]) -> None:
        """Keep an example of a reason, if few have been kept."""
        held = self.examples.setdefault(reason, [])
        if len(held) < EXAMPLES:
            held.append(example)

    @property
    def bad_rows(self) -> int:
        """Rows that could not be read."""
        return sum(self.bad.values())

    def check(self, limit: float) -> None:
        """Raise DataError if more than a share `limit` of the rows is bad, or no document is left."""
        if self.rows and self.bad_rows > limit * self.rows:
            share = f"{self.bad_rows} of {self.rows} rows ({self.bad_rows / self.rows:.1%}) cannot be read"
            what = f"{share}; `bad_rows` allows {limit:.1%}\n{self._bad_examples()}"
            raise DataError(what, fix="mend or `exclude` these files, or raise `bad_rows` to do without those rows")
        if self.rows == 0:
            raise DataError("the corpus is empty: the files hold no rows", fix="check `paths` and `kind`")
        if self.rows == self.bad_rows + sum(self.dropped.values()):
            reasons = ", ".join(f"{reason} {count}" for reason, count in (self.dropped + self.bad).most_common())
            what = f"the corpus is empty: none of {self.rows} rows passed ({reasons})"
            raise DataError(what, fix="loosen the filters of `clean`, or check `paths`, `kind` and `text_field`")

    def _bad_examples(self) -> str:
        lines = []
        for reason, count in self.bad.most_common():
            for example in self.examples.get(f"bad: {reason}", [])[:2]:
                detail = f" ({example['excerpt']})" if example["excerpt"] else ""
                lines.append(f"  {example['source']}: {reason}{detail}")
            lines.append(f"  … {count} rows: {reason}")
        return "\n".join(lines[:12])


def as_data(ledger: Ledger, splits: dict[str, Any], leaks: dict[str, Any], sources: Sequence[Source]) -> dict[str, Any]:
    """The whole ledger as plain data."""
    kept = {name: {"documents": s["documents"], "bytes": s["bytes"]} for name, s in splits.items()}
    return {
        "rows": ledger.rows,
        "bad": dict(ledger.bad),
        "dropped": dict(ledger.dropped),
        "kept": kept,
        "changed": dict(ledger.changed),
        "redacted": dict(ledger.redacted),
        "leaks": leaks,
        "examples": ledger.examples,
        "sources": [
            {"paths": source.paths, "licence": source.licence, **ledger.per_source.get(i, Counter())}
            for i, source in enumerate(sources)
        ],
    }


def as_markdown(data: dict[str, Any]) -> str:
    """The ledger for people, as Markdown."""
    kept = sum(split["documents"] for split in data["kept"].values())
    lines = ["# What became of the data", "", f"{data['rows']} rows were read and {kept} documents kept.", ""]
    lines += _table(["split", "documents", "bytes"], _split_rows(data["kept"]))
    for name, title in (("dropped", "Dropped"), ("bad", "Could not be read"), ("changed", "Changed")):
        if data[name]:
            lines += [f"## {title}", "", *_table(["why", "documents"], _sorted(data[name]))]
    if data["redacted"]:
        lines += ["## Redacted", "", *_table(["identifier", "times"], _sorted(data["redacted"]))]
    lines += _leaks(data["leaks"])
    lines += ["## Sources", "", *_table(["paths", "licence", "rows", "bad"], _source_rows(data["sources"]))]
    lines += _examples(data["examples"])
    return "\n".join(lines)


def _split_rows(kept: dict[str, Any]) -> list[list[str]]:
    return [
        [name, str(split["documents"]), f"{split['bytes']} ({show_bytes(split['bytes'])})"]
        for name, split in kept.items()
    ]


def _source_rows(sources: Iterable[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for source in sources:
        paths = ", ".join(f"`{path}`" for path in source["paths"])
        rows.append([paths, source["licence"] or "not stated", str(source.get("rows", 0)), str(source.get("bad", 0))])
    return rows


def _sorted(counts: dict[str, int]) -> list[list[str]]:
    return [[name, str(count)] for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _leaks(leaks: dict[str, Any]) -> list[str]:
    if not leaks["checked"]:
        return []
    what = f"{leaks['exact']} equal and {leaks['near']} nearly equal documents were found in two splits"
    done = {"remove": "removed from the training side", "report": "left where they were"}.get(leaks["action"], "")
    return [
        "## Leaks between splits",
        "",
        f"{what}{f'; they were {done}' if leaks['exact'] + leaks['near'] else ''}.",
        "",
    ]


def _examples(examples: dict[str, list[dict[str, str]]]) -> list[str]:
    lines = ["## Examples", ""] if examples else []
    for reason in sorted(examples):
        lines += [f"**{reason}**", ""]
        for example in examples[reason]:
            of = f" repeats `{example['of']}`" if "of" in example else ""
            lines.append(
                f"- `{example['source']}`{of}{': ' + _quoted(example['excerpt']) if example['excerpt'] else ''}"
            )
        lines.append("")
    return lines


def _quoted(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    ruled = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in ruled] + [""]
