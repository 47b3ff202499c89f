"""The label ledger: what becomes of every document, token and label before the first step.

A run can look healthy while training on nothing: rows cropped before their labels, masks that cover
everything, documents that tokenize to nothing. The ledger counts each of these, plan prints it, and
`require_labels` stops a run that has nothing to learn from, naming the documents.
"""

from __future__ import annotations

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
    """Tokens of the split, special ones included where they are stored."""
    trained: int
    """Labels the loss counts (kept). The expected number where it is drawn anew each epoch."""
    masked: int
    """Positions that are seen but predict nothing."""
    cropped: int = 0
    """Tokens cut off, so that no row of the epoch shows them."""
    padded: int = 0
    """Positions filled with padding."""
    dropped: int = 0
    """Documents that yield no row at all, because they have no tokens."""
    unlabelled: tuple[int, ...] = ()
    """The first few documents without any trained label, by index in the split."""
    is_expected: bool = False
    """Whether `trained` and `masked` are expectations rather than counts."""

    def table(self) -> list[list[str]]:
        """Rows of text for a table, the first a header: what, count, share, meaning."""
        positions = self.trained + self.masked + self.padded
        about = "about " if self.is_expected else ""
        entries = [
            ("documents", self.documents, 0, "in the split"),
            ("dropped", self.dropped, self.documents, "documents without a single token"),
            ("tokens", self.tokens, 0, "in all documents, stored special tokens included"),
            ("cropped", self.cropped, self.tokens, "tokens that no row shows"),
            ("rows", self.rows, 0, "an epoch"),
            ("trained", self.trained, positions, f"{about}this many labels the loss counts, an epoch"),
            ("masked", self.masked, positions, "positions seen, but predicting nothing"),
            ("padded", self.padded, positions, "positions filled up with padding"),
        ]
        header = ["", "count", "share", "meaning"]
        return [header, *([name, f"{count:,}", _share(count, whole), text] for name, count, whole, text in entries)]

    def require_labels(self, where: str = "") -> None:
        """Raise DataError, naming documents, if not one label would be trained."""
        if self.trained > 0:
            return
        named = ", ".join(map(str, self.unlabelled)) or "none"
        more = ", …" if len(self.unlabelled) < self.documents else ""
        raise DataError(
            f"no trained labels: {self.documents} documents with {self.tokens} tokens leave nothing to predict "
            f"(documents without labels: {named}{more})",
            where=where,
            fix="these documents are empty or too short: give longer texts, or loosen what `prepare` removes",
        )


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else ""
