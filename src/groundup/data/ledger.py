"""The label ledger: what becomes of every document, token and label before the first step.

A run can look healthy while training on nothing: rows cropped before their labels, masks that cover
everything, documents that tokenize to nothing. The ledger counts each of these, plan prints it, and
`require_labels` stops a run that has nothing to learn from, naming the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from groundup.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Counts of one epoch over one split.

    Every position of every row is exactly one of `trained`, `masked` or `padded`:
    `rows` × row length = trained + masked + padded.
    """

    documents: int
    """Documents of the split."""
    rows: int
    """Rows of the split, each seen once an epoch."""
    tokens: int
    """Tokens of the split, special ones included where they are stored; see `unit`."""
    trained: int
    """Labels the loss counts (kept). The expected number where it is drawn anew each epoch."""
    masked: int
    """Positions that are seen but predict nothing."""
    cropped: int = 0
    """Tokens cut off, so that no row of the epoch shows them."""
    padded: int = 0
    """Positions filled with padding."""
    dropped: int = 0
    """Documents that yield no row at all: they have no tokens, or are left out for their length."""
    overlong: int = 0
    """Documents longer than the context: split, cut or left out, as the recipe says."""
    emptied: int = 0
    """Documents that had something to learn from until they were cut to the context."""
    unlabelled: tuple[int, ...] = ()
    """The first few documents without any trained label, by index in the split."""
    is_expected: bool = False
    """Whether `trained` and `masked` are expectations rather than counts."""
    unit: str = "tokens"
    """What `tokens` counts, if they are none: the `items` of histories; `examples` where a document is one position."""

    def table(self) -> list[list[str]]:
        """Rows of text for a table, the first a header: what, count, share, meaning."""
        positions = self.trained + self.masked + self.padded
        about = "about " if self.is_expected else ""
        special = ", stored special tokens included" if self.unit == "tokens" else ""
        entries = [
            ("documents", self.documents, 0, "in the split"),
            ("dropped", self.dropped, self.documents, "documents that yield no row"),
            (self.unit, self.tokens, 0, f"in all documents{special}"),
            ("cropped", self.cropped, self.tokens, f"{self.unit} that no row shows"),
            ("rows", self.rows, 0, "an epoch"),
            ("trained", self.trained, positions, f"{about}this many labels the loss counts, an epoch"),
            ("masked", self.masked, positions, "positions seen, but predicting nothing"),
            ("padded", self.padded, positions, "positions filled up with padding"),
        ]
        if self.unit == "examples":  # nothing of one is cut off, and nothing is filled up
            entries = [entry for entry in entries if entry[0] not in ("examples", "cropped", "padded")]
        if self.overlong:
            entries.append(("overlong", self.overlong, self.documents, "documents longer than the context"))
        if self.emptied:
            what = "documents that the context cut everything to learn off; they are left out"
            entries.append(("emptied", self.emptied, self.documents, what))
        header = ["", "count", "share", "meaning"]
        return [header, *([name, f"{count:,}", _share(count, whole), text] for name, count, whole, text in entries)]

    def require_labels(self, where: str = "", *, name_of: Callable[[int], str] | None = None) -> None:
        """Raise DataError, naming documents, if not one label would be trained.

        `name_of` tells where a document is from; they are named by their place in the split without it.
        """
        if self.trained > 0:
            return
        named = ", ".join(map(name_of or str, self.unlabelled)) or "none"
        more = ", …" if len(self.unlabelled) < self.documents else ""
        why = f", {self.emptied} of them because the context cuts every answer off" if self.emptied else ""
        held = f" with {self.tokens} {self.unit}" if self.unit != "examples" else ""
        raise DataError(
            f"no trained labels: {self.documents} documents{held} leave nothing to predict{why} "
            f"(documents without labels: {named}{more})",
            where=where,
            fix="give a longer context, or shorter texts"
            if self.emptied
            else "these documents are empty or too short: give longer texts, or loosen what `prepare` removes",
        )


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else ""
