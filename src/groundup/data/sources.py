"""What a recipe says of its sources: which files, of which kind, and what of them goes into the corpus.

`data/source_files.py` finds the files, `data/source_blocks.py` cuts them into blocks, and `data/source_rows.py`
reads the rows of a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from groundup.data.audio import Sound
from groundup.data.event_columns import EventColumns
from groundup.data.images import Framing
from groundup.data.pixel_lines import PixelLines

Kind = Literal[
    "text", "jsonl", "csv", "tsv", "parquet", "json", "conll", "squad", "aligned", "images", "idx", "webdataset",
    "pixels", "interactions", "audio",
]  # fmt: skip
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""The kind a suffix stands for; `.gz`, `.zst` and `.zip` are looked through."""
NAMED_KINDS: dict[str, frozenset[str]] = {
    "json": frozenset({".json"}),
    "squad": frozenset({".json"}),
    "conll": frozenset({".conll", ".conllu", ".conllx", ".bio", ".iob", ".iob2", ".bmes", ".bioes", ".tsv", ".txt"}),
    "images": frozenset(
        {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
    ),
    "idx": frozenset({".idx", ".idx1-ubyte", ".idx3-ubyte"}),
    "webdataset": frozenset({".tar"}),
    "pixels": frozenset({".csv", ".txt"}),
    "audio": frozenset({".wav", ".wave", ".flac"}),
}
"""Suffixes that count in a folder or an archive once a recipe names the kind; `auto` passes them by."""
DEFAULT_KEEP: dict[str, tuple[str, ...]] = {
    "squad": ("question", "answers", "article", "question_id"),
    "conll": ("tokens", "tags"),
    "images": ("image", "label"),
    "idx": ("image", "label"),
    "webdataset": ("image", "label"),
    "pixels": ("image", "label"),
}
"""Columns that a kind carries into the corpus unless `keep` says otherwise."""
DIGESTED = frozenset({"images", "idx", "webdataset", "pixels", "interactions", "audio"})
"""Kinds that hold no text: what stands for it is a digest of what was decoded, or of a row's columns."""
TOGETHER = frozenset({"aligned", "idx"})
"""Kinds whose files are read side by side, in the order of `paths`."""
OWN_COLUMNS = frozenset({"text", "id", "source", "group", "split"})
"""Columns of a corpus that no kept column may replace."""
Value = str | int | float | bool


class Source(EventColumns):
    """Where documents come from, and how a file becomes documents."""

    kind: Literal["auto", Kind] = "auto"
    """How to read the files; `auto` goes by the suffix. `json` is a file with one list of rows (see `rows`),
    `conll` one token a line with its tags in columns and an empty line after each sentence (CoNLL-U too),
    `squad` questions on passages, `aligned` several files whose lines belong together, one a column. Pictures:
    `images` are image files, each labelled by the folder it lies in; `idx` is MNIST's format, with
    `paths: [images, labels]`; `webdataset` are tar archives of `KEY.jpg` beside `KEY.cls` or `KEY.json`;
    `pixels` is a picture a line, as numbers with its label (see `pixels`).
    `interactions` are tables of who did what when (`user`, `item`, `time`). `audio` are WAV and FLAC files."""
    paths: list[str]
    """Files, folders or globs (`**` for any depth). `~` is the home folder, `{stdlib}` the folder of
    Python's standard library; other paths are relative to the current directory. `data.zip!*/train.txt`
    names files inside an archive; `{package:NAME}` is the folder of an installed Python package."""
    exclude: list[str] = Field(default=[])
    """Globs of files to leave out, written like `paths`; one that begins with `**/` holds anywhere."""
    document: Literal["file", "line", "paragraph"] = "file"
    """What one document of a text file is; paragraphs are divided by empty lines."""
    text_field: str | list[str] = "text"
    """The column that holds the text, or several that are joined by line ends. In JSONL a dotted path
    (`meta.body`) reaches inside; a list of strings or of messages (`content` or `value`) found there is
    joined by line ends. `squad`, `conll` and `aligned` have a column `text`: the passage, the tokens
    joined, the lines of the first file. `[]` for rows that hold no text, as those of a table of numbers: their
    text is then what `keep` names, one `name: value` a line, by which equal rows are told."""
    keep: list[str] | dict[str, str] = Field(default=[])
    """Other columns to carry into the corpus, for example `label`; a mapping renames them, new name first:
    `{pair: sentence2}`. Unless given: the questions and answers of `squad`, the tokens and tags of `conll`,
    the columns of `aligned`, and of rows without a text those that `columns` names."""
    values: dict[str, dict[str, Value]] = Field(default={})
    """For a kept column, what its values are called in the corpus: `{label: {"0": negative, "1": positive}}`.
    A row with a value that is not listed counts as one that cannot be read."""
    add: dict[str, Value] = Field(default={})
    """Columns with the same value in every row of this source, for example `{label: positive}`."""
    distinct_by: list[str] = Field(default=[])
    """Columns that tell apart rows of equal text: where they differ, neither is a duplicate of the other.
    Unless given: the question of `squad`, all columns of `aligned`."""
    columns: list[str] | None = None
    """Names of the columns of a CSV or TSV file without a header line, of JSON rows that are lists, of the
    columns of CoNLL, or of the files of `aligned`, in their order."""
    skip_lines: Annotated[int, Field(ge=0)] = 0
    """Lines at the head of a CSV or TSV file that are neither rows nor their header, such as a title."""
    rows: str | list[str] = ""
    """In `json`, the key (a dotted path) under which the list of rows stands, or several keys; by default
    the file itself is the list."""
    separator: str | None = None
    """What divides the columns of a CSV, TSV or CoNLL file, if not a comma, a tab, or any white space. In `aligned`,
    what divides the lines of each file into columns, where they hold several."""
    strip: str | None = None
    """In `conll`, a regular expression whose matches are removed from every token: `^en:`, `[0-9]$`; in `text`,
    one whose matches are removed from every document: `/[a-z]+` where words carry tags."""
    quotes: bool | None = None
    """Whether double quotes enclose fields of a CSV or TSV file; by default they do in CSV only."""
    encoding: str = "auto"
    """Character encoding; `auto` finds UTF-8, UTF-16 and GB18030."""
    image: Framing | None = None
    """The form pictures are brought to: `{size: 32, channels: 3, fit: crop}`; by default they keep their sizes."""
    pixels: PixelLines | None = None
    """How the lines of `pixels` are read: `{label: last, white: 16}`; by default the label stands first, and white is
    255."""
    audio: Sound | None = None
    """What recordings are brought to, and what their paths say: `{rate: 8000, file_name: "(?P<label>[0-9])_.*"}`."""
    licence: str = ""
    """Licence of the data, carried into every artefact made from it."""
    split: Literal["train", "validation", "test"] | None = None
    """Put all documents of this source into one split, instead of dividing them."""

    @field_validator("paths", "exclude", "keep", "distinct_by", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("values", mode="before")
    @classmethod
    def _keys_are_text(cls, value: object) -> object:
        """YAML reads `0:` as a number and `true:` as a truth value; they stand for what the file says."""
        if not isinstance(value, Mapping):
            return value
        return {name: {as_text(key): new for key, new in known.items()} if isinstance(known, Mapping) else known
                for name, known in value.items()}  # fmt: skip

    @field_validator("paths")
    @classmethod
    def _at_least_one(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one file, folder or glob")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value != "auto":
            try:
                "".encode(value)
            except LookupError:
                raise ValueError(f"no encoding named {value!r}; try auto, utf-8, utf-16, gb18030 or latin-1") from None
        return value

    @field_validator("strip")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for key, kinds in (
            ("rows", ("json",)),
            ("strip", ("conll", "text")),
            ("separator", ("auto", "csv", "tsv", "conll", "aligned", "interactions", "pixels")),
            ("skip_lines", ("auto", "csv", "tsv", "interactions")),
            ("image", ("images", "idx", "webdataset", "pixels")),
            ("pixels", ("pixels",)),
            ("audio", ("audio",)),
        ):
            if getattr(self, key) and self.kind not in kinds:
                raise ValueError(f"`{key}` belongs to kind {' or '.join(kinds)}, not to {self.kind}")
        if (
            self.kind == "aligned"
            and len(self.columns or ()) != len(self.paths)
            and not (self.separator and self.columns)
        ):
            raise ValueError("`kind: aligned` needs `columns`: one name for each of `paths`, such as [en, de]")
        if self.kind == "idx" and len(self.paths) > 2:
            raise ValueError("`kind: idx` takes `paths: [images, labels]`; further files are a source of their own")
        if self.kind in DIGESTED and self.text_field != "text":
            raise ValueError(
                f"`kind: {self.kind}` has no `text_field`: a digest of what is decoded stands for the text"
            )
        quoted = self.quotes or (self.quotes is None and self.kind in ("auto", "csv"))
        if len(self.separator or "") > 1 and quoted and self.kind != "conll":
            raise ValueError(f"fields divided by {self.separator!r} cannot be quoted too: add `quotes: false`")
        return self

    @model_validator(mode="after")
    def _events_fit(self) -> Self:
        mistakes = self.mistakes_of_events(self.kind)
        if self.kind == "interactions" and self.split is not None:
            mistakes.append("`split` of a source of interactions: prepare's own `split: {by: last}` divides events")
        if mistakes:
            raise ValueError(mistakes[0])
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name in (*(self.keep if self.text_field else self.kept), *self.add):
            if name in OWN_COLUMNS:
                raise ValueError(f"{name!r} is a column of every corpus; rename it: `keep: {{row_{name}: {name}}}`")
        twice = next((name for name in self.add if name in self.kept), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is in `keep` and in `add`")
        strange = next((name for name in self.values if name not in self.kept), None)
        if strange is not None:
            raise ValueError(f"`values` names {strange!r}, which `keep` does not carry into the corpus")
        return self

    @property
    def kept(self) -> dict[str, str]:
        """Columns carried into the corpus: the name there, and the name or dotted path in the file."""
        if isinstance(self.keep, dict):
            return dict(self.keep)
        takes_all = self.kind == "aligned" or not self.text_field
        implied = self.columns or () if takes_all else DEFAULT_KEEP.get(self.kind, ())
        implied = self.event_columns if self.says_split else implied
        implied = (self.audio or Sound()).columns if self.kind == "audio" else implied
        return {name: name for name in self.keep or (name for name in implied if name not in self.add)}

    @property
    def apart(self) -> list[str]:
        """Columns that tell apart rows of equal text, by their names in the corpus."""
        implied = {"squad": ["question"], "aligned": list(self.columns or ())}
        return self.distinct_by or [name for name in implied.get(self.kind, []) if name in self.kept]

    @property
    def tables(self) -> list[Source]:
        """Further tables that say more of what the rows name, each as a source of its own."""
        return [Source(kind="tsv", paths=[table.path]) for table in self.described]

    def path_of(self, name: str) -> str:
        """The name or dotted path in the file of a column known by its name in the corpus."""
        return self.kept.get(name, name)


def as_text(value: object) -> str:
    """A value as a file spells it: text as it is, truth values in lower case, numbers in digits."""
    return str(value).lower() if isinstance(value, bool) else str(value)
