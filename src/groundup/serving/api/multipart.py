"""Forms with files in them (multipart/form-data, RFC 7578), read from a body that is whole and short already.

The limits stand outside: `serving/limits.py` has counted the bytes as they came. Here parts, their heads and their
fields are counted before they are kept, nothing is written to a disk, and what a client says of a file (its name, its
type) is let go. The parser is that of python-multipart, which Starlette uses too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from groundup.errors import MissingExtra
from groundup.serving.api.errors import ApiError, bad

FORM = "multipart/form-data"
LONGEST_FIELD = 64 << 10
"""Bytes of a part that is no file."""
LONGEST_HEAD = 4096
"""Bytes of the head of a part."""
LONGEST_BOUNDARY = 70
"""Characters, as RFC 2046 §5.1.1 has it."""


@dataclass
class Form:
    """What a form holds: texts by name, and files in the order in which they came, each with its name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts. Raises ApiError (400) where the header does not say."""
    for part in content_type.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        value = value.strip().strip('"')
        if name.lower() == "boundary" and 0 < len(value) <= LONGEST_BOUNDARY and value.isascii():
            return value.encode("ascii")
    raise bad("the Content-Type of the form names no boundary", fix="leave the header to the program that sends it")


def read(body: bytes, boundary: bytes, *, most_parts: int, most_file: int) -> Form:
    """The parts of a form. Raises ApiError: 400 for what is no form, 413 for too many parts and too long ones."""
    try:
        from python_multipart.exceptions import MultipartParseError
        from python_multipart.multipart import MultipartParser
    except ImportError as error:
        raise MissingExtra("python-multipart", "serve", needed_for="forms") from error
    # What separates parts stands nowhere inside of them, and once more behind the last.
    if (b"\r\n" + body).count(b"\r\n--" + boundary) > most_parts + 1:
        what = f"the form has more than {most_parts} parts"
        raise ApiError(413, "too_many_parts", what, fix="send it in several requests")
    reader = _Reader(most_file)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_header_field": reader.name,
                "on_header_value": reader.value,
                "on_header_end": reader.end_header,
                "on_headers_finished": reader.end_head,
                "on_part_data": reader.data,
                "on_part_end": reader.end,
                "on_end": reader.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise _no_form(str(error)[:120]) from error
    if not reader.is_whole:
        raise _no_form("it ends in the middle")
    return reader.form


class _Reader:
    """What the parser tells, gathered into a form."""

    def __init__(self, most_file: int) -> None:
        self.form, self.is_whole = Form(), False
        self._most_file = most_file
        self._head: dict[str, str] = {}
        self._name = self._value = b""
        self._field, self._is_file = "", False
        self._data: list[bytes] = []
        self._size = self._head_size = 0

    def begin(self) -> None:
        self._head, self._data, self._size, self._head_size = {}, [], 0, 0

    def name(self, data: bytes, start: int, end: int) -> None:
        self._name += self._of_head(data[start:end])

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._of_head(data[start:end])

    def _of_head(self, piece: bytes) -> bytes:
        self._head_size += len(piece)
        if self._head_size > LONGEST_HEAD:
            raise _no_form(f"the head of a part is longer than {LONGEST_HEAD} bytes")
        return piece

    def end_header(self) -> None:
        self._head[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def end_head(self) -> None:
        kind, options = _options(self._head.get("content-disposition", ""))
        if kind != "form-data" or not options.get("name"):
            raise _no_form("a part has no name")
        if self._head.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
            raise _no_form("a part is encoded, which forms of today are not")
        self._field, self._is_file = options["name"], "filename" in options

    def data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        most = self._most_file if self._is_file else LONGEST_FIELD
        if self._size > most:
            what = f"the part {self._field[:64]!r} is longer than {most} bytes"
            raise ApiError(413, "file_too_large", what, param=self._field[:64], fix="send a smaller one")
        self._data.append(data[start:end])

    def end(self) -> None:
        content = b"".join(self._data)
        if self._is_file:
            self.form.files.append((self._field, content))
            return
        if self._field in self.form.fields:
            raise bad(f"the field {self._field[:64]!r} is given twice", self._field[:64])
        try:
            self.form.fields[self._field] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(f"the field {self._field[:64]!r} is not UTF-8", self._field[:64]) from error

    def finish(self) -> None:
        self.is_whole = True


def _options(header: str) -> tuple[str, dict[str, str]]:
    """`form-data; name="x"` as its first word and its options."""
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(header)
    return kind.decode("latin-1"), {
        name.decode("latin-1"): value.decode("utf-8", "replace") for name, value in options.items()
    }


def _no_form(why: str) -> ApiError:
    return bad(f"the body is no form that can be read: {why}", code="invalid_form", fix="send multipart/form-data")
