"""Sources cut into blocks: the units of work that processes share.

A block is a few megabytes of whole rows: several small files, a range of bytes of a large one, some
row groups of a Parquet file, or unpacked bytes where the file itself cannot be cut. How sources are
cut depends only on the files, never on the number of processes, so the corpus does not either.
"""

from __future__ import annotations

import codecs
import csv
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from groundup.data.encodings import PROBE_BYTES, detect
from groundup.data.source_files import SourceFile
from groundup.data.source_formats import FORMATS, as_lines, open_rows
from groundup.data.source_media import READERS
from groundup.data.source_paths import unreadable
from groundup.data.sources import TOGETHER, Source
from groundup.data.splits import Split
from groundup.errors import DataError, nearest

LONGEST_ROW = 32 << 20
"""Bytes that one row or one document may have; more is a mistake, not a document."""
FILES_PER_BLOCK = 512

_Piece = tuple[int, int, bytes | None, int]
"""Start and stop in the (unpacked) file, the bytes if they were read, and the stored bytes it accounts for."""


@dataclass(frozen=True)
class Block:
    """Some whole rows of a source, small enough to be worked on in memory."""

    index: int
    source: int
    files: tuple[SourceFile, ...]
    """Several files if each is a document; otherwise the one file the rows are from."""
    start: int = 0
    stop: int = 0
    """Range of bytes in the file; equal if the block is not a range."""
    data: bytes | None = None
    """The rows themselves where the file is packed or had to be recoded (then UTF-8), or where a row
    group of a Parquet file is too large for one block (then an Arrow stream)."""
    encoding: str = "utf-8"
    recoded: bool = False
    made: bool = False
    """Whether `data` holds rows made from a file whose rows are no lines (`source_formats.as_lines`)."""
    header: tuple[str, ...] = ()
    """Column names of a CSV or TSV file."""
    groups: tuple[int, ...] = ()
    """Row groups of a Parquet file."""
    rows: int = 0
    """Rows of a Parquet block."""
    lead: int = 0
    """Lines of the file before this block, for the first block of a file; the others follow it."""
    size: int = 0
    """Stored bytes that this block accounts for, for progress."""


def cut(
    sources: list[Source],
    files: list[SourceFile],
    block_bytes: int,
    wanted: Sequence[str] = (),
    split: Split | None = None,
) -> Iterator[Block]:
    """The blocks of all sources, in order; `wanted` are columns needed beside the text and `keep`.

    `split` is how the events of `interactions` are divided, which decides what its rows are.

    Raises DataError for a file that cannot be read.
    """
    index = 0
    for source_index, source in enumerate(sources):
        own = [file for file in files if file.source == source_index]
        if not own:
            continue  # only some sources were asked for
        for block in _cut_source(source, own, block_bytes, wanted, split):
            yield replace(block, index=index)
            index += 1


def _cut_source(
    source: Source, files: list[SourceFile], block_bytes: int, wanted: Sequence[str], split: Split | None
) -> Iterator[Block]:
    whole = [file for file in files if is_document(file, source)]
    yield from _whole_files(whole, block_bytes)
    if source.kind in TOGETHER or source.says_split:
        yield from _made(files, source, block_bytes, split)
        return
    for file in files:
        if file.kind in FORMATS:
            yield from _made([file], source, block_bytes)
        elif file.kind == "parquet":
            names = [source.path_of(name) for name in (*source.kept, *wanted) if name not in source.add]
            columns = list(dict.fromkeys((*text_columns(source), *names)))
            yield from _row_groups(file, block_bytes, columns)
        elif not is_document(file, source):
            try:
                yield from _ranges(file, source, block_bytes)
            except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
                raise broken_file(file, error) from error


def _made(files: Sequence[SourceFile], source: Source, block_bytes: int, split: Split | None = None) -> Iterator[Block]:
    """Blocks of rows made from a file whose rows are no lines."""
    opened = open_rows(files, source, split)
    base = Block(0, files[0].source, (files[0],), made=True)
    held: list[bytes] = []
    size = rows = counted = 0
    with closing(opened.rows):  # a forecast leaves before the end
        for line in as_lines(opened.rows):
            held.append(line)
            size, rows = size + len(line), rows + 1
            if size >= block_bytes:
                taken = opened.taken(rows)
                yield replace(base, data=b"".join(held), size=taken - counted)
                held, size, counted = [], 0, taken
    if held:
        yield replace(base, data=b"".join(held), size=sum(file.size for file in files) - counted)


def is_document(file: SourceFile, source: Source) -> bool:
    """Whether the whole file is one document."""
    return file.kind in READERS or (file.kind == "text" and source.document == "file")


def broken_file(file: SourceFile, error: Exception) -> DataError:
    """The error for a file that cannot be opened, or whose packing is damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(file.name, error)
    return DataError(f"{file.name!r} is damaged: {error}", fix="fetch the file again, or add it to `exclude`")


def _whole_files(files: list[SourceFile], block_bytes: int) -> Iterator[Block]:
    """Blocks of consecutive files, each a document."""
    held: list[SourceFile] = []
    size = 0
    for file in files:
        if held and (size + file.expected_bytes() > block_bytes or len(held) == FILES_PER_BLOCK):
            yield Block(0, held[0].source, tuple(held), size=sum(f.size for f in held))
            held, size = [], 0
        held.append(file)
        size += file.expected_bytes()
    if held:
        yield Block(0, held[0].source, tuple(held), size=sum(f.size for f in held))


def open_parquet(file: SourceFile) -> pq.ParquetFile:
    """A Parquet file opened for reading in small pieces. Raises DataError if it is none."""
    try:
        return pq.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False)
    except OSError as error:
        raise broken_file(file, error) from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.name!r} is no Parquet file ({error})", fix="check `kind`, or fetch it again") from error


def text_columns(source: Source) -> list[str]:
    """Names of the columns whose values make up the text."""
    return [source.text_field] if isinstance(source.text_field, str) else source.text_field


def check_columns(opened: pq.ParquetFile, file: SourceFile, columns: Sequence[str]) -> None:
    """Raise DataError if a Parquet file lacks one of the columns."""
    known = opened.schema_arrow.names
    for name in columns:
        if name not in known:
            raise no_column(name, file.name, known)


def no_column(name: str, file: str, known: Sequence[str]) -> DataError:
    """The error for a column that a table does not have."""
    fix = nearest(name, known) + "; set `text_field`, or `columns` if the file has no header line"
    return DataError(f"{file!r} has no column {name!r}", fix=fix)


def _row_groups(file: SourceFile, block_bytes: int, columns: list[str]) -> Iterator[Block]:
    """Blocks of consecutive small row groups, or of parts of large ones."""
    with open_parquet(file) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
        share = file.size / max(1, opened.metadata.num_rows)
        held: list[int] = []
        for number, group in enumerate(groups):
            if held and sum(groups[i].total_byte_size for i in held) + group.total_byte_size > block_bytes:
                yield _group_block(file, held, sum(groups[i].num_rows for i in held), share)
                held = []
            if group.total_byte_size > 4 * block_bytes:
                check_columns(opened, file, columns)
                rows = max(1, group.num_rows * block_bytes // group.total_byte_size)
                for batch in opened.iter_batches(rows, row_groups=[number], columns=columns):
                    yield _carried(file, batch, share)
            else:
                held.append(number)
        if held:
            yield _group_block(file, held, sum(groups[i].num_rows for i in held), share)


def _group_block(file: SourceFile, groups: list[int], rows: int, share: float) -> Block:
    return Block(0, file.source, (file,), groups=tuple(groups), rows=rows, size=round(rows * share))


def _carried(file: SourceFile, batch: pa.RecordBatch, share: float) -> Block:
    """A block that carries its rows, read here because a process could only read the row group whole."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    return Block(0, file.source, (file,), data=data, rows=batch.num_rows, size=round(batch.num_rows * share))


def _ranges(file: SourceFile, source: Source, block_bytes: int) -> Iterator[Block]:
    """Blocks of whole lines, paragraphs or CSV records of one file."""
    with file.open() as stream:
        head = stream.read(PROBE_BYTES)
    encoding = source.encoding if source.encoding != "auto" else detect(head) or "utf-8"
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
    names, skip, lead = _header(file, source, head, encoding)
    quoted = has_quotes(file, source)
    base = Block(0, file.source, (file,), encoding="utf-8" if wide else encoding, recoded=wide, header=names)
    if file.packing or wide or quoted:
        recode = encoding if wide else ""
        pieces = _scan(file, recode, skip, quoted, source.document == "paragraph", block_bytes)
        carried = bool(file.packing) or wide
    else:
        pieces, carried = _jump(file, skip, source.document == "paragraph", block_bytes), False
    for start, stop, data, size in pieces:
        own_lead = lead if start == skip else 0
        yield replace(base, start=start, stop=stop, data=data if carried else None, lead=own_lead, size=size)


def has_quotes(file: SourceFile, source: Source) -> bool:
    """Whether fields may be enclosed in quotes, so that a line end may stand inside a record."""
    if file.kind not in ("csv", "tsv"):
        return False
    return source.quotes if source.quotes is not None else file.kind == "csv"


def table_fields(lines: Iterable[str], file: SourceFile, source: Source) -> Iterator[list[str]]:
    """The fields of each record of a CSV or TSV file.

    An iterator of the csv module (with `line_num`) unless the separator is longer than a character.
    """
    mark = source.separator or ("\t" if file.kind == "tsv" else ",")
    if len(mark) > 1:
        return (line.rstrip("\n").split(mark) if line.strip() else [] for line in lines)
    return csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_MINIMAL if has_quotes(file, source) else csv.QUOTE_NONE)


def _header(file: SourceFile, source: Source, head: bytes, encoding: str) -> tuple[tuple[str, ...], int, int]:
    """Column names of a CSV or TSV file, and the bytes and lines to skip; of a recoded file, bytes of UTF-8."""
    if file.kind not in ("csv", "tsv"):
        return (), len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0, 0
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    lines = io.StringIO(text, newline="\n")
    before = "".join(lines.readline() for _ in range(source.skip_lines))
    names = source.columns
    if names is None:
        line = lines.readline()
        names, before = next(table_fields(io.StringIO(line.rstrip("\r\n")), file, source), []), before + line
    raw = before.encode("utf-8" if encoding.startswith(("utf-16", "utf-32")) else encoding, "replace")
    return tuple(name.strip() for name in names), len(raw), before.count("\n")


def _jump(file: SourceFile, start: int, paragraphs: bool, block_bytes: int) -> Iterator[_Piece]:
    """Byte ranges of whole lines or paragraphs of a plain file, found without reading what lies between."""
    with file.open() as stream:
        while start < file.size:
            stream.seek(min(start + block_bytes, file.size))
            _read_line(stream, file)
            while paragraphs and _read_line(stream, file).strip():
                pass
            stop = min(stream.tell(), file.size)
            yield start, stop, None, stop - start
            start = stop


def _read_line(stream: IO[bytes], file: SourceFile) -> bytes:
    line = stream.readline(LONGEST_ROW + 1)
    if len(line) > LONGEST_ROW:
        raise too_long(file.name)
    return line


def too_long(name: str) -> DataError:
    """The error for a row or document that is larger than any document should be."""
    limit = LONGEST_ROW >> 20
    fix = "cut it: `document: paragraph` or `document: line` for text; check `kind` and `quotes` for tables"
    return DataError(f"{name!r} holds one document of more than {limit} MiB", fix=fix)


def _scan(
    file: SourceFile, recode: str, start: int, quoted: bool, paragraphs: bool, block_bytes: int
) -> Iterator[_Piece]:
    """Pieces of whole rows of a file that must be read through."""
    stream, taken = file.open_counted()
    with stream:
        chunks = _recoded(stream, recode) if recode else iter(lambda: stream.read(1 << 20), b"")
        held, position, to_skip, counted = bytearray(), start, start, 0
        for chunk in chunks:
            drop = min(to_skip, len(chunk))
            to_skip -= drop
            held += chunk[drop:]
            end = _last_row_end(held, quoted, paragraphs) if len(held) >= block_bytes else 0
            if end:
                yield position, position + end, bytes(held[:end]), taken() - counted
                position, counted = position + end, taken()
                del held[:end]
            elif len(held) > LONGEST_ROW + block_bytes:
                raise too_long(file.name)
        if held:
            yield position, position + len(held), bytes(held), file.size - counted


def _recoded(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    """UTF-8 bytes of a UTF-16 or UTF-32 stream; what is broken becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while chunk := stream.read(1 << 20):
        yield decoder.decode(chunk).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def _last_row_end(held: bytearray, quoted: bool, paragraphs: bool) -> int:
    """Where the last complete row of the held bytes ends; 0 if none does.

    A line end lies outside quotes if an even number of quotes precedes it, since a quote inside a
    field is doubled. Line ends are tried from the back, within the last two megabytes or so.
    """
    if paragraphs:
        return max(_after(held, b"\n\n"), _after(held, b"\n\r\n"))
    end = held.rfind(b"\n") + 1
    if not quoted:
        return end
    quotes = held.count(b'"', 0, end)
    while end and quotes % 2:
        earlier = held.rfind(b"\n", 0, end - 1) + 1
        quotes -= held.count(b'"', earlier, end)
        end = earlier
    return end


def _after(held: bytearray, mark: bytes) -> int:
    place = held.rfind(mark)
    return 0 if place < 0 else place + len(mark)
