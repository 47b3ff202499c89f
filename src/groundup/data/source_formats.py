"""Files whose rows are not lines: JSON lists, questions on passages, tagged sentences, aligned files, pictures.

Each becomes a stream of mappings, so that the rest of reading sees rows like those of a JSONL file.
JSON is parsed whole, which bounds its size; tagged and aligned files are streamed.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import zstandard

from groundup.data.encodings import PROBE_BYTES, detect
from groundup.data.pixel_lines import PixelLines, is_heading, picture_of
from groundup.data.source_files import SourceFile
from groundup.data.source_idx import open_idx
from groundup.data.source_made import Made, Rows, damaged
from groundup.data.source_tar import open_shard
from groundup.data.sources import Source
from groundup.data.splits import Split
from groundup.errors import DataError
from groundup.text.joining import join_tokens

LARGEST_WHOLE = 256 << 20
"""Unpacked bytes of a file that is parsed whole; a larger one belongs into JSONL."""
LONGEST_SENTENCE = 100_000
"""Lines without an empty one after which a file is no CoNLL."""
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U, by the names its description gives them."""
FORMATS = frozenset({"json", "squad", "conll", "aligned", "idx", "webdataset", "pixels", "interactions"})
BROKEN = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that do not decode."""


def open_rows(files: Sequence[SourceFile], source: Source, split: Split | None = None) -> Rows:
    """The rows of a file (of `aligned`: of all files together). `split` is how rows that say theirs are to be divided.

    Raises DataError for a file that cannot be opened, is no JSON, is too large, or has no such rows.
    """
    file = files[0]
    match file.kind:
        case "json":
            rows = list(_json(file, source))
        case "squad":
            rows = list(_squad(file, _parsed(file, source)))
        case "conll":
            return _stream([file], lambda lines: _sentences(file, source, lines[0]), source)
        case "idx":
            return open_idx(files, source)
        case "webdataset":
            return open_shard(files, source)
        case "pixels":
            return _stream([file], lambda lines: _pictures(source, lines[0]), source)
        case "interactions":
            from groundup.data import source_events  # reads tables by what reads rows of lines, which imports this

            rows = source_events.made(files, source, split or Split())
        case _:
            return _stream(files, lambda lines: _aligned(files, source, lines), source)
    return Rows((row for row in rows), lambda count: file.size * count // max(1, len(rows)))


def _parsed(file: SourceFile, source: Source) -> Any:
    """The whole file as JSON."""
    try:
        with file.open() as stream:
            data = stream.read(LARGEST_WHOLE + 1)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise damaged(file, error) from error
    if len(data) > LARGEST_WHOLE:
        what = f"{file.name!r} is one JSON value of more than {LARGEST_WHOLE >> 20} MiB, which is parsed whole"
        raise DataError(what, fix=f"write one row a line: jq -c '.[]' {file.name} > rows.jsonl, and `kind: jsonl`")
    encoding = source.encoding if source.encoding != "auto" else detect(data, whole=True)
    try:
        return json.JSONDecoder(strict=False).decode(data.decode(encoding or "utf-8"))
    except UnicodeDecodeError as error:
        what = f"{file.name!r} is no text in {encoding or 'UTF-8'} (at byte {error.start})"
        raise DataError(what, fix="name its `encoding`, or fetch the file again") from error
    except (ValueError, RecursionError) as error:
        raise _no_json(file, error) from error


def _no_json(file: SourceFile, error: Exception) -> DataError:
    if not isinstance(error, json.JSONDecodeError):
        return DataError(f"{file.name!r} is JSON nested too deeply", fix="check `kind`, or mend the file")
    where = f"{file.name}:{error.lineno}"
    if error.msg == "Extra data":
        return DataError("a second JSON value follows the first", where=where, fix="one row a line is `kind: jsonl`")
    what = f"broken JSON ({error.msg[:1].lower()}{error.msg[1:]} at column {error.colno})"
    return DataError(what, where=where, fix="mend the file, or fetch it again")


def _json(file: SourceFile, source: Source) -> Iterator[Made]:
    """The rows of one list, or of several lists by their keys; numbered over all of them."""
    parsed = _parsed(file, source)
    keys = [source.rows] if isinstance(source.rows, str) else source.rows
    number = 0
    for key in keys:
        for row in _list_under(file, parsed, key):
            number += 1
            if isinstance(row, list) and source.columns is not None:
                yield _named(number, row, source.columns)
            else:
                yield Made(number, row) if isinstance(row, dict) else Made(number, None, "not a JSON object")


def _named(number: int, row: list[Any], columns: Sequence[str]) -> Made:
    if len(row) != len(columns):
        return Made(number, None, f"wrong number of fields ({len(row)} where `columns` has {len(columns)})")
    return Made(number, dict(zip(columns, row, strict=True)))


def _list_under(file: SourceFile, parsed: Any, key: str) -> list[Any]:
    found = parsed
    for part in key.split(".") if key else ():
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, list):
        return found
    lists = (
        sorted(name for name, value in parsed.items() if isinstance(value, list)) if isinstance(parsed, dict) else []
    )
    what = f"{file.name!r} has no list of rows" + (f" under {key!r}" if key else "")
    fix = f"set `rows` to a key that holds one: {', '.join(lists)}" if lists else "check `kind` and `rows`"
    raise DataError(what, fix=fix)


def _squad(file: SourceFile, parsed: Any) -> Iterator[Made]:
    """One row a question, numbered over the file: SQuAD 1.1, 2.0, and CMRC in SQuAD's style."""
    number = 0
    for index, article in enumerate(_list_under(file, parsed, "data")):
        for paragraph in article.get("paragraphs", ()) if isinstance(article, dict) else ():
            title = str(article.get("title") or paragraph.get("title") or article.get("id") or index)
            for question in paragraph.get("qas", ()):
                number += 1
                yield _question(number, title, paragraph.get("context"), question)
    if not number:
        raise DataError(f"{file.name!r} holds no questions", fix="check `kind`: SQuAD is data[].paragraphs[].qas[]")


def _question(number: int, title: str, context: Any, question: dict[str, Any]) -> Made:
    if not isinstance(context, str) or not isinstance(question.get("question"), str):
        return Made(number, None, "a question without its text or passage")
    answers: list[dict[str, Any]] = []
    for answer in question.get("answers") or ():
        found = {"text": str(answer.get("text", "")), "start": int(answer.get("answer_start", -1))}
        if found["text"] and found not in answers:
            answers.append(found)
    if question.get("is_impossible"):
        answers = []
    elif answers and not any(answer["text"] in context for answer in answers):
        return Made(number, None, f"no answer is in the passage (question {question.get('id', number)})")
    row = {"text": context, "question": question["question"], "answers": answers, "article": title}
    return Made(number, row | {"question_id": str(question.get("id", number))})


Lines = Iterator[tuple[int, str]]


def _stream(files: Sequence[SourceFile], read: Callable[[list[Lines]], Iterator[Made]], source: Source) -> Rows:
    """Rows made from the numbered lines of files that are open while they are read."""
    taken: list[Callable[[], int]] = []

    def rows() -> Generator[Made, None, None]:
        with ExitStack() as stack:
            try:
                texts = [_text(file, source, stack, taken) for file in files]
                yield from read(texts)
            except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
                raise damaged(files[0], error) from error

    def stored(_: int) -> int:
        return sum(min(file.size, read()) for file, read in zip(files, taken, strict=False))

    return Rows(rows(), stored)


def _text(file: SourceFile, source: Source, stack: ExitStack, taken: list[Callable[[], int]]) -> Lines:
    """The lines of a file with their numbers; bytes that do not decode become lone surrogates."""
    with file.open() as stream:
        found = source.encoding if source.encoding != "auto" else detect(stream.read(PROBE_BYTES)) or "utf-8"
    encoding = "utf-8-sig" if found in ("ascii", "utf-8") else found
    opened, count = file.open_counted()
    taken.append(count)
    lines = stack.enter_context(io.TextIOWrapper(cast(io.BufferedReader, opened), encoding, "surrogateescape"))
    return enumerate((line.rstrip("\n") for line in lines), 1)


def _aligned(files: Sequence[SourceFile], source: Source, texts: list[Lines]) -> Iterator[Made]:
    """One row for each line of all files. Raises DataError where one ends before the others."""
    names = source.columns or ()
    line = 0
    while True:
        together = [next(text, None) for text in texts]
        if None in together:
            break
        line += 1
        values = [found[1].strip() for found in together if found is not None]
        if not any(values):
            continue
        if source.separator is not None:
            values = [field for value in values for field in _divided(value, source.separator)]
        if len(values) != len(names):
            yield Made(line, None, f"wrong number of fields ({len(values)} where `columns` has {len(names)})")
            continue
        empty = [name for name, value in zip(names, values, strict=True) if not value]
        if empty:
            yield Made(line, None, f"the line of {empty[0]!r} is empty")
        elif any(BROKEN.search(value) for value in values):
            yield Made(line, None, "broken encoding")
        else:
            yield Made(line, {**dict(zip(names, values, strict=True)), "text": values[0]})
    counts = [line + (found is not None) + sum(1 for _ in text) for found, text in zip(together, texts, strict=True)]
    if len(set(counts)) > 1:
        lengths = ", ".join(f"{file.name} {count}" for file, count in zip(files, counts, strict=True))
        raise DataError(f"files of `kind: aligned` differ in length: {lengths} lines", fix="they must be line by line")


def _divided(line: str, separator: str) -> list[str]:
    """The fields of a line; a blank as separator stands for any white space."""
    return [field.strip() for field in line.split(separator if separator.strip() else None)]


def _pictures(source: Source, lines: Lines) -> Iterator[Made]:
    """One row a line, its picture as raw bytes."""
    section = source.pixels or PixelLines()
    for number, line in lines:
        fields = [field.strip(' "') for field in line.split(source.separator or ",")]
        if any(fields) and not (number == 1 and is_heading(fields)):
            made = picture_of(fields, section)
            yield Made(number, None, made) if isinstance(made, str) else Made(number, made)


def _sentences(file: SourceFile, source: Source, lines: Lines) -> Iterator[Made]:
    """One row a sentence: a list for each column, `tokens` and `tags`, and `text`."""
    layout = _Layout.of(file, source)
    held: list[tuple[int, str]] = []
    for number, line in lines:
        if line.strip():
            if not layout.is_comment(line):
                held.append((number, line))
            if len(held) > LONGEST_SENTENCE:
                what = f"no empty line in {LONGEST_SENTENCE} lines, so these are no sentences"
                raise DataError(what, where=f"{file.name}:{held[0][0]}", fix="check `kind`")
        elif held:
            yield from layout.sentence(held)
            held = []
    if held:
        yield from layout.sentence(held)


@dataclass(frozen=True)
class _Layout:
    """How the lines of a CoNLL file are read."""

    names: tuple[str, ...]
    """Names of the columns; empty where a file has a token first and its tag last."""
    token: str
    tag: str
    separator: str | None
    strip: re.Pattern[str] | None
    universal: bool
    wanted: frozenset[str]

    @classmethod
    def of(cls, file: SourceFile, source: Source) -> _Layout:
        """The layout a source asks for; a file named `.conllu` needs no columns."""
        universal = ".conllu" in (file.member or file.path).lower() and source.columns is None
        names = CONLLU if universal else tuple(source.columns or ())
        token = "form" if universal else "tokens" if "tokens" in names else "1"
        tag = "upos" if universal else "tags" if "tags" in names else "last"
        strip = re.compile(source.strip) if source.strip else None
        return cls(names, token, tag, source.separator, strip, universal, frozenset(source.kept.values()))

    def is_comment(self, line: str) -> bool:
        """Whether a line says something about the text instead of being a part of it."""
        return line.startswith("-DOCSTART-") or (self.universal and line.startswith("#"))

    def fields(self, line: str) -> list[str]:
        """The columns of a line; without a separator those between tabs, or else between spaces."""
        mark = self.separator if self.separator is not None else "\t" if "\t" in line else None
        return line.split(mark) if mark else line.split()

    def sentence(self, held: list[tuple[int, str]]) -> Iterator[Made]:
        """The row of a sentence; nothing for one without tokens."""
        broken = next((number for number, line in held if BROKEN.search(line)), None)
        if broken is not None:
            yield Made(broken, None, "broken encoding")
            return
        rows = [(number, self.fields(line)) for number, line in held]
        if self.universal:  # 3-4 is a contraction whose parts follow, 5.1 a word that is not in the text
            rows = [(number, fields) for number, fields in rows if fields[0].isdecimal()]
        width = len(self.names) or len(rows[0][1]) if rows else 0
        odd = next(((number, len(fields)) for number, fields in rows if len(fields) != width), None)
        if odd is not None:
            yield Made(odd[0], None, f"{odd[1]} columns where the sentence has {width}")
        elif rows:
            yield self._row(rows[0][0], [fields for _, fields in rows])

    def _row(self, line: int, rows: list[list[str]]) -> Made:
        columns = [list(column) for column in zip(*rows, strict=True)]
        by_name = {str(place): column for place, column in enumerate(columns, 1)} | {"last": columns[-1]}
        by_name |= dict(zip(self.names, columns, strict=False))
        tokens = by_name[self.token]
        if self.strip is not None:
            tokens = [self.strip.sub("", token) for token in tokens]
        tokens = [token.strip() for token in tokens]
        empty = next((place for place, token in enumerate(tokens) if not token), None)
        if empty is not None:
            return Made(line + empty, None, "an empty token")
        found: dict[str, Any] = {"text": join_tokens(tokens), "tokens": tokens}
        if self.tag != "last" or len(columns) > 1:
            found["tags"] = by_name[self.tag]
        return Made(line, found | {name: by_name[name] for name in self.wanted & by_name.keys() - found.keys()})


_BYTES = "\0bytes"
"""The key that stands for bytes where a row is JSON; no name of a column begins with a zero."""


def as_lines(rows: Iterable[Made]) -> Iterator[bytes]:
    """Rows in the form in which a block carries them: one JSON list [place, row, reason] a line."""
    for made in rows:
        yield json.dumps(made, ensure_ascii=False, default=_in_base_64).encode("utf-8", "surrogatepass") + b"\n"


def from_lines(data: bytes) -> Iterator[Made]:
    """The rows that `as_lines` wrote."""
    for line in data.split(b"\n"):
        if line:
            yield Made(*json.loads(line.decode("utf-8", "surrogatepass"), object_hook=_bytes_again))


def _in_base_64(value: Any) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"a row cannot hold a {type(value).__name__}")
    return {_BYTES: base64.b64encode(value).decode("ascii")}


def _bytes_again(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if _BYTES in value else value
