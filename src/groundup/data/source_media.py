"""Files that are no text: how a picture or a recording becomes a row of a corpus.

READERS holds, by the kind of a source, the function that turns one whole file into its row. FINISHERS holds
the same for kinds whose rows come several to a file (`data/source_formats.py`): what a file's reader passed on
as it stood, still packed, is decoded in the process that cleans the block, so that reading stays cheap.

The `text` of such a row is the digest of what was decoded. Equal pictures are therefore equal texts, and
duplicates and leaks between splits are told by what tells them of documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from groundup.data import audio, images
from groundup.data.source_files import SourceFile
from groundup.data.sources import Source, as_text
from groundup.errors import DataError

Read = Callable[[bytes, str, Source], dict[str, Any] | str]
"""`read(data, name, source)`: the columns of the row a file becomes, `text` among them; or why it cannot be used.

`data` is the file's bytes (at most LONGEST_ROW of them), `name` its name in the corpus: `photos/cat/1.jpg`, or
`photos.zip!cat/1.jpg` of a member of an archive. A reason is one line that begins with the kind of fault, by which
the ledger counts; details follow in brackets: `truncated file (3 bytes missing)`. Only what no file can
be read without, such as a package that is not installed, is raised.
"""
Finish = Callable[[dict[str, Any], Source], dict[str, Any] | str]
"""`finish(row, source)`: the columns of a row, made of what its file's reader passed on; or why it cannot be used."""

_ARCHIVE = re.compile(r".*\.zip!", re.IGNORECASE | re.DOTALL)


def read_image(data: bytes, name: str, source: Source) -> dict[str, Any] | str:
    """The row of an image file: the picture as PNG, and as its label the name of the folder it lies in."""
    made = _decoded(data, source)
    return made if isinstance(made, str) else made | {"label": folder_of(name)}


def folder_of(name: str) -> str | None:
    """The name of the folder that a file lies in, by the file's name in the corpus; None if that names no folder."""
    return _ARCHIVE.sub("", name).rpartition("/")[0].rpartition("/")[2] or None


def _decoded(data: bytes, source: Source) -> dict[str, Any] | str:
    """The columns `text` and `image` of an image file in the form that a source asks for, or why there are none."""
    framing = source.image or images.AS_IT_IS
    if framing.channels is None:
        framing = framing.model_copy(update={"channels": 3})
    try:
        return _pictured(images.decode(data, framing))
    except images.BadImage as bad:
        return bad.what


def _pictured(pixels: images.Pixels) -> dict[str, Any]:
    return {"text": images.digest(pixels), "image": images.to_png(pixels)}


def finish_raw(row: dict[str, Any], source: Source) -> dict[str, Any] | str:
    """The row of a picture that came as raw bytes, of an IDX file or of a line of numbers."""
    pixels = np.frombuffer(row["image"], np.uint8).reshape(row["shape"])
    return row | _pictured(images.framed(pixels, source.image or images.AS_IT_IS))


def finish_sample(row: dict[str, Any], source: Source) -> dict[str, Any] | str:
    """The row of a sample of a tar archive, whose picture came as it was packed."""
    made = _decoded(row["image"], source)
    if isinstance(made, str):
        kind, bracket, details = made.partition(" (")
        return f"{kind} ({row['key']}{': ' if bracket else ''}{details.removesuffix(')')})"
    return row | made


def check_labels(sources: Sequence[Source], files: Iterable[SourceFile]) -> None:
    """Raise DataError if files held out for validation or test lie in folders that name labels `train` has not.

    Told from names alone, before anything is decoded, where all that is trained on are folders of images. What a
    source without a split of its own holds is trained on. Other labels are seen by the task that learns them.
    """
    if any(source.kind != "images" for source in sources if source.split in (None, "train")):
        return
    found: dict[str, set[str]] = {}
    for file in files:
        source = sources[file.source]
        label = folder_of(file.name)
        if label is None or file.kind != "images" or source.kept.get("label") != "label":
            continue
        known = source.values.get("label")
        if known is None or label in known:
            found.setdefault(source.split or "train", set()).add(as_text(known[label]) if known else label)
    train = found.pop("train", set())
    for split, labels in found.items():
        strange, absent = sorted(labels - train), sorted(train - labels)
        if train and strange:
            what = f"label folders differ between splits: {split} has {_listed(strange)}, which train has not"
            more = f" (and lacks {_listed(absent)}, which train has)" if absent else ""
            fix = "rename the folders, name them alike by `values`, or `keep: image` where a split has no labels"
            raise DataError(what + more, fix=fix)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


READERS: dict[str, Read] = {"images": read_image, "audio": audio.read}
FINISHERS: dict[str, Finish] = {"idx": finish_raw, "pixels": finish_raw, "webdataset": finish_sample}
