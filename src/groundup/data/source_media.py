"""Files that are no text: how a picture or a recording becomes a row of a corpus.

READERS holds, by the kind of a source, the function that turns one whole file into its row. FINISHERS holds
the same for kinds whose rows come several to a file (`data/source_formats.py`): what a file's reader passed on
as it stood, still packed, is decoded in the process that cleans the block, so that reading stays cheap.

The `text` of such a row is the digest of what was decoded. Equal pictures are therefore equal texts, and
duplicates and leaks between splits are told by what tells them of documents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from groundup.data.sources import Source

Read = Callable[[bytes, str, Source], dict[str, Any] | str]
"""`read(data, name, source)`: the columns of the row a file becomes, `text` among them; or why it cannot be used.

`data` is the file's bytes (at most LONGEST_ROW of them), `name` its name in the corpus: `photos/cat/1.jpg`, or
`photos.zip!cat/1.jpg` of a member of an archive. A reason is one line that begins with the kind of fault, by which
the ledger counts; details follow in brackets: `truncated file (3 bytes missing)`. Only what no file can
be read without, such as a package that is not installed, is raised.
"""
Finish = Callable[[dict[str, Any], Source], dict[str, Any] | str]
"""`finish(row, source)`: the columns of a row, made of what its file's reader passed on; or why it cannot be used."""

READERS: dict[str, Read] = {}
FINISHERS: dict[str, Finish] = {}
