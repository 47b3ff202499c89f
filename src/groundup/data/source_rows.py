"""Blocks turned into rows: text, and whatever else the recipe asked to keep.

A row that cannot be used (broken encoding, broken JSON, a missing field) is not an exception but a
row with a reason: the stage counts it, keeps an example, and stops only if there are too many.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from groundup.data.encodings import detect, is_binary
from groundup.data.source_blocks import (
    LONGEST_ROW,
    Block,
    broken_file,
    check_columns,
    is_document,
    no_column,
    open_parquet,
    table_fields,
    text_columns,
)
from groundup.data.source_formats import from_lines
from groundup.data.source_media import FINISHERS, READERS
from groundup.data.source_whole import contents
from groundup.data.sources import Source, as_text
from groundup.errors import DataError

_ESCAPED = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that do not decode."""
_ARRAY = "a JSON array, not one JSON object a line"
csv.field_size_limit(LONGEST_ROW)


class Row(NamedTuple):
    """One row of a source: either a text, or the reason why there is none."""

    file: int
    """Position of its file in the block."""
    line: int
    """Line of its file counted from the start of the block, from 1; of Parquet, the row."""
    text: str
    bad: str = ""
    """Why the row cannot be used; empty for a good row."""
    extra: tuple[Any, ...] = ()
    """Values of the wanted columns."""


def read_rows(block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a block, with the values of the `wanted` columns.

    Raises DataError for a file that cannot be read at all, and for a column that no row has.
    """
    names = [name for name in wanted if name not in source.add]
    rows = _read(block, source, [source.path_of(name) for name in names])
    if source.kind == "text" and source.strip is not None:
        rows = _stripped(rows, re.compile(source.strip))
    if source.values or len(names) < len(wanted):
        rows = _with_values(rows, source, wanted, names)
    return rows if source.text_field else _described(rows, wanted, list(source.kept))


def _described(rows: Iterator[Row], wanted: Sequence[str], kept: Sequence[str]) -> Iterator[Row]:
    """Rows without a text of their own, with one made from their kept columns."""
    places = [(name, wanted.index(name)) for name in kept if name in wanted]
    for row in rows:
        text = "" if row.bad else "\n".join(f"{name}: {row.extra[place]}" for name, place in places)
        yield row._replace(text=text)


def _stripped(rows: Iterator[Row], pattern: re.Pattern[str]) -> Iterator[Row]:
    """Rows whose texts lack what the pattern finds."""
    for row in rows:
        yield row if row.bad else row._replace(text=pattern.sub("", row.text))


def _with_values(rows: Iterator[Row], source: Source, wanted: Sequence[str], names: Sequence[str]) -> Iterator[Row]:
    """Rows whose values go by the names of `values`, with the columns of `add`."""
    for row in rows:
        if not row.bad:
            held = dict(zip(names, row.extra, strict=True))
            strange = next((n for n in held if n in source.values and as_text(held[n]) not in source.values[n]), None)
            if strange is not None:
                bad = f"a value of {strange!r} that `values` does not list ({as_text(held[strange])[:40]})"
                row = Row(row.file, row.line, "", bad)
            else:
                held |= {name: source.values[name][as_text(held[name])] for name in held if name in source.values}
                row = row._replace(extra=tuple([(held | source.add)[name] for name in wanted]))
        yield row


def _read(block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a block with what it holds at the `wanted` paths."""
    file = block.files[0]
    if block.made:
        return _made_rows(block, source, wanted)
    if is_document(file, source):
        return _documents(block, source, wanted)
    if file.kind == "parquet":
        return _parquet(block, source, wanted)
    text = _decode(_data(block), block, source)
    broken = "broken UTF-16" if block.recoded else f"broken {block.encoding.upper().replace('ASCII', 'UTF-8')}"
    flawed = re.compile("\ufffd") if block.recoded else _ESCAPED
    check = None if text.isascii() or flawed.search(text) is None else flawed
    match file.kind:
        case "jsonl":
            return _json_rows(text, source, wanted, check, broken)
        case "csv" | "tsv":
            rows = _table_rows(text, block, source, wanted)
        case _:
            pieces = _paragraphs(text) if source.document == "paragraph" else _lines(text)
            rows = (Row(0, line, piece, extra=(None,) * len(wanted)) for line, piece in pieces)
    return rows if check is None else _flag(rows, check, broken)


def _flag(rows: Iterator[Row], check: re.Pattern[str], broken: str) -> Iterator[Row]:
    for row in rows:
        values = [value for value in row.extra if isinstance(value, str)]
        if not row.bad and any(check.search(value) for value in (row.text, *values)):
            row = Row(row.file, row.line, "", broken)
        yield row


def _data(block: Block) -> bytes:
    if block.data is not None:
        return block.data
    try:
        with block.files[0].open() as stream:
            stream.seek(block.start)
            return stream.read(block.stop - block.start)
    except OSError as error:
        raise broken_file(block.files[0], error) from error


def _decode(data: bytes, block: Block, source: Source) -> str:
    """The block as text, line ends unified; bytes that do not decode become lone surrogates."""
    encoding = "utf-8" if block.encoding in ("ascii", "utf-8-sig") else block.encoding
    if block.encoding == "ascii" and source.encoding == "auto":
        # The head of the file was plain ASCII, which is the beginning of many encodings.
        later = detect(data)
        encoding = "gb18030" if later == "gb18030" else "utf-8"
    text = data.decode(encoding, "surrogateescape")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _documents(block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    """One row for each file of the block."""
    for number, data in enumerate(contents(block.files, LONGEST_ROW + 1)):
        file = block.files[number]
        read = READERS.get(file.kind)
        if isinstance(data, Exception):
            if read is None or getattr(data, "errno", None) is not None:
                raise data if isinstance(data, DataError) else broken_file(file, data) from data
            yield Row(number, 1, "", f"damaged file ({' '.join(str(data).split())})")
        elif read is not None:
            yield _decoded(number, read(data, file.name, source), wanted)
        elif len(data) > LONGEST_ROW:
            raise DataError(
                f"{file.name!r} is one document of more than {LONGEST_ROW >> 20} MiB",
                fix="add `document: paragraph` or `document: line` to the source",
            )
        else:
            yield _document(number, data, source, len(wanted))


def _decoded(number: int, made: dict[str, Any] | str, wanted: Sequence[str]) -> Row:
    """The row of a file that is no text, or why there is none."""
    if isinstance(made, str):
        return Row(number, 1, "", made)
    return Row(number, 1, made["text"], extra=tuple([_reach(made, tuple(name.split("."))) for name in wanted]))


def _document(number: int, data: bytes, source: Source, columns: int) -> Row:
    encoding = detect(data, whole=True) if source.encoding == "auto" else source.encoding
    if encoding is None:
        binary = is_binary(data[: 1 << 14])
        return Row(number, 1, "", "binary file" if binary else "unknown or broken encoding")
    try:
        return Row(number, 1, data.decode(encoding), extra=(None,) * columns)
    except UnicodeDecodeError as error:
        return Row(number, 1, "", f"broken {encoding.upper()} (at byte {error.start})")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.isspace():
            yield number, line


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    first = 1
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.isspace():
            first = first if held else number
            held.append(line)
        elif held:
            yield first, "\n".join(held)
            held = []
    if held:
        yield first, "\n".join(held)


def count_lines(block: Block, source: Source) -> int:
    """Lines (of Parquet: rows) that a block covers, by which the rows after it are numbered."""
    if block.files[0].kind == "parquet":
        return block.rows
    return 0 if block.made or is_document(block.files[0], source) else _data(block).count(b"\n")


def _made_rows(block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows whose numbers are those of the whole file, so that nothing is added to them."""
    fields, extras = _field_paths(source), [tuple(name.split(".")) for name in wanted]
    finish = FINISHERS.get(block.files[0].kind)
    for place, made, bad in from_lines(_data(block)):
        value = finish(made, source) if finish is not None and isinstance(made, dict) else made
        if isinstance(value, str):
            yield Row(0, place, "", value)
            continue
        if not isinstance(value, dict):
            yield Row(0, place, "", bad)
            continue
        joined, bad = _joined([_reach(value, path) for path in fields], fields)
        yield Row(0, place, joined, bad, tuple([_reach(value, path) for path in extras]))


def _json_rows(
    text: str, source: Source, wanted: Sequence[str], check: re.Pattern[str] | None, broken: str
) -> Iterator[Row]:
    fields = _field_paths(source)
    extras = [tuple(name.split(".")) for name in wanted]
    loads = json.JSONDecoder(strict=False).decode
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        if check is not None and check.search(line):
            # Told here, since an escape such as \udc80 in good JSON reads the same once parsed.
            yield Row(0, number, "", broken)
            continue
        try:
            value = loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(0, number, "", _json_reason(error, line, number))
            continue
        if not isinstance(value, dict):
            yield Row(0, number, "", _ARRAY if number == 1 and isinstance(value, list) else "not a JSON object")
            continue
        joined, bad = _joined([_reach(value, path) for path in fields], fields)
        yield Row(0, number, joined, bad, tuple([_reach(value, path) for path in extras]))


def _joined(values: Sequence[Any], fields: Sequence[tuple[str, ...]]) -> tuple[str, str]:
    """The text of the fields of a row, or an empty text and what is wrong with it."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0], ""
    texts = [_text_of(value) for value in values]
    for value, text, path in zip(values, texts, fields, strict=True):
        if text is None:
            return "", _field_reason(value, path)
    return "\n".join(text for text in texts if text is not None), ""


def _json_reason(error: Exception, line: str, number: int) -> str:
    if number == 1 and line.lstrip().startswith("["):
        return _ARRAY
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error.msg[:1].lower()}{error.msg[1:]} at column {error.colno})"
    return "broken JSON (nested too deeply)"


def _field_paths(source: Source) -> list[tuple[str, ...]]:
    return [tuple(name.split(".")) for name in text_columns(source)]


def _reach(value: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a dotted path, or None; a key that itself contains the dots is found as well."""
    if len(path) == 1:
        return value.get(path[0])
    found: Any = value
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return value.get(".".join(path))
        found = found[key]
    return found


def _text_of(value: Any) -> str | None:
    """The text of a field: a string, a message, or a list of such joined by line ends; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _spoken(value)
    if not isinstance(value, list) or not value:
        return None
    pieces = [item if isinstance(item, str) else _spoken(item) if isinstance(item, dict) else None for item in value]
    if None in pieces:
        return None
    spoken = isinstance(value[0], dict)
    return "\n".join(piece for piece in pieces if piece or (piece is not None and not spoken))


def _spoken(message: dict[str, Any]) -> str | None:
    """What a message of a conversation says: its `content` or `value`; nothing where it only calls a tool."""
    said = message.get("content", message.get("value"))
    if isinstance(said, list):  # parts, of which some may be no text
        said = "\n".join(str(part["text"]) for part in said if isinstance(part, dict) and "text" in part)
    if said is None and message.keys() & {"role", "from", "tool_calls"}:
        return ""
    return said if isinstance(said, str) else None


def _field_reason(value: Any, path: tuple[str, ...]) -> str:
    name = ".".join(path)
    return f"no field {name!r}" if value is None else f"the field {name!r} is no text"


def _table_rows(text: str, block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    file = block.files[0]
    names = text_columns(source)
    columns = [_column(name, block) for name in names]
    extras = [_column(name, block) for name in wanted]
    reader = table_fields(io.StringIO(text, newline=""), file, source)
    width, line, numbered = len(block.header), 1, hasattr(reader, "line_num")
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(0, line, "", f"broken table row ({error})")
            line = reader.line_num + 1  # type: ignore[attr-defined]
            continue
        if len(fields) == width:
            joined = fields[columns[0]] if len(columns) == 1 else "\n".join(fields[i] for i in columns)
            yield Row(0, line, joined, "", tuple(fields[i] for i in extras))
        elif fields:
            yield Row(0, line, "", f"wrong number of fields ({len(fields)} where the header has {width})")
        line = reader.line_num + 1 if numbered else line + 1  # type: ignore[attr-defined]


def _column(name: str, block: Block) -> int:
    try:
        return block.header.index(name)
    except ValueError:
        raise no_column(name, block.files[0].name, block.header) from None


def _parquet(block: Block, source: Source, wanted: Sequence[str]) -> Iterator[Row]:
    names = text_columns(source)
    columns, fields = list(dict.fromkeys((*names, *wanted))), [(name,) for name in names]
    line = 1
    for batch in _batches(block, columns):
        values = {name: batch.column(name).to_pylist() for name in columns}
        for i in range(batch.num_rows):
            joined, bad = _joined([values[name][i] for name in names], fields)
            yield Row(0, line, joined, bad, tuple([values[name][i] for name in wanted]))
            line += 1


def _batches(block: Block, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if block.data is not None:
        yield from pa.ipc.open_stream(block.data)
        return
    with open_parquet(block.files[0]) as opened:
        check_columns(opened, block.files[0], columns)
        yield from opened.iter_batches(batch_size=512, row_groups=list(block.groups), columns=columns)
