"""Documents of txt, md, jsonl and parquet files, a piece at a time: memory does not grow with a file.

Knows neither shards nor splits. A txt or md file is one document; a JSONL line or a row of parquet is one.
"""

import codecs
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.shards import measure_group
from nanochat.errors import DataError

MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
ZERO_SHARE = 0.05
"""Of the units of a UTF-16 text at least: spaces and line ends, whatever the script."""

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
PIECE_CHARS = 1_000_000
"""Documents of more than twice this are cut into pieces of it: a row group of training has room for some of them."""
BREAK_CHARS = 1_000
"""How far before its place a cut looks for the end of a paragraph, a line or a word."""
BLOCK_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
"""Text of a batch of parquet rows."""
LATIN_1 = "--encoding latin-1  # if it is text at all"
SKIP = "--skip-bad  # leaves out what cannot be read, and counts it"


@dataclass
class Reading:
    """How files are read, and what became of them.

    column: of parquet, or key of JSONL. encoding: of txt, md and jsonl files that are not UTF-8. skip_bad: leave out
    what cannot be read, instead of raising DataError. left_out: counts by reason. num_cut: documents cut into pieces.
    num_recoded: files and lines read with `encoding`. advance: called now and then with bytes that were read, about.
    """

    column: str = "text"
    encoding: str | None = None
    skip_bad: bool = False
    advance: Callable[[int], None] = lambda num_bytes: None
    left_out: Counter[str] = field(default_factory=Counter)
    num_cut: int = 0
    num_recoded: int = 0

    def refuse(self, reason: str, error: DataError) -> None:
        """Count what cannot be read, or raise the error. reason: plural, "lines that are not JSON"."""
        if not self.skip_bad:
            raise error
        self.left_out[reason] += 1


def iter_file(path: Path, reading: Reading) -> Iterator[str]:
    """The documents of one file, without the empty ones, long ones in pieces.

    Raises DataError with the file, and the line or row where there is one.
    """
    readers = {".parquet": _iter_parquet, ".jsonl": _iter_jsonl}
    try:
        yield from readers.get(path.suffix.lower(), _iter_plain)(path, reading)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise name_read_error(error, path) from error
        reading.refuse("files that are damaged", DataError(f"{path} is not a readable parquet file: {error}", SKIP))


def measure_text(path: Path, column: str) -> int:
    """Bytes of a file's text, about: those of its column as parquet counts them, or of the whole file."""
    if path.suffix.lower() == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                return sum(measure_group(file, index, column) for index in range(file.num_row_groups))
        except (OSError, pa.ArrowException):
            pass  # reading it will say so
    return path.stat().st_size


def name_read_error(error: OSError, path: Path) -> DataError:
    """The sentence for a file or folder that the system does not let us read."""
    name = error.filename or path
    return DataError(f"cannot read {name}: {error.strerror or error}", f"ls -ld {shlex.quote(str(name))}")


def find_break(text: str, at: int) -> int:
    """The best place to cut near `at`, never after it: behind a paragraph, a line or a word.

    >>> find_break("one two three", 9), find_break("one\\n\\ntwo three", 9), find_break("onetwothree", 4)
    (8, 5, 4)
    """
    start = max(0, at - BREAK_CHARS)
    for mark in ("\n\n", "\n", " "):
        if (place := text.rfind(mark, start, at)) > 0:
            return place + len(mark)
    return at


def _iter_pieces(blocks: Iterator[str], reading: Reading) -> Iterator[str]:
    """The text of one document, in one piece unless it is long; blocks: what it consists of."""
    text, is_cut, is_empty = "", False, True
    for block in blocks:
        text += block
        while len(text) > 2 * PIECE_CHARS:
            place = find_break(text, PIECE_CHARS)
            piece, text, is_cut = text[:place], text[place:], True
            if piece.strip():
                yield piece
                is_empty = False
    if text.strip():
        yield text
        is_empty = False
    if is_empty:
        reading.left_out["documents without text"] += 1
    reading.num_cut += is_cut


def _iter_plain(path: Path, reading: Reading) -> Iterator[str]:
    encoding = _choose_encoding(path, reading)
    fault = "" if encoding else "its bytes are those of " + _detect_encoding(path).upper()
    if encoding:
        fault = _find_fault(path, encoding)
        if fault and reading.encoding and encoding != reading.encoding:
            fault, encoding = _find_fault(path, reading.encoding), reading.encoding
    if fault:
        name = (encoding or "utf-8").removesuffix("-sig").upper()
        error = DataError(f"{path} is not {name}: {fault}", _suggest_encoding(path, reading))
        reading.refuse(f"files that are not {name}", error)
        return
    reading.num_recoded += encoding == reading.encoding
    with path.open(encoding=encoding, newline="") as file:
        yield from _iter_pieces(_iter_blocks(file, reading), reading)


def _iter_blocks(file: TextIO, reading: Reading) -> Iterator[str]:
    while block := file.read(BLOCK_BYTES):
        reading.advance(len(block))  # characters, so no more than bytes
        yield block


def _find_fault(path: Path, encoding: str) -> str:
    """What the file has that is not of this encoding, "" where there is nothing."""
    decoder, done = codecs.getincrementaldecoder(encoding)(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            try:
                decoder.decode(block, final=not block)
            except UnicodeError as error:
                if not isinstance(error, UnicodeDecodeError):
                    return str(error)  # UTF-16 without a mark
                return f"{error.reason} at byte {done + len(block) - len(error.object) + error.start:,}"
            done += len(block)
            if not block:
                return ""


def _detect_encoding(path: Path) -> str:
    """UTF-8 or, by a mark or by its zero bytes, UTF-16 or UTF-32, as Python spells them.

    UTF-8 may hold a zero byte here and there.
    """
    with path.open("rb") as file:
        block = file.read(4096)
    found = json.detect_encoding(block[:4])
    if found.startswith("utf-8") or block.startswith(MARKS):
        return found
    width, least = (4, 2.0) if "32" in found else (2, ZERO_SHARE)
    is_whole = path.stat().st_size % width == 0
    return found if is_whole and block.count(0) >= least * (len(block) // width) else "utf-8"


def _choose_encoding(path: Path, reading: Reading) -> str | None:
    """The first to try: UTF-8, or what `encoding` says of bytes that are not; None where it says nothing of them."""
    return "utf-8-sig" if _detect_encoding(path).startswith("utf-8") else reading.encoding


def _suggest_encoding(path: Path, reading: Reading) -> str:
    """The hint for a text in another encoding than expected."""
    found = _detect_encoding(path)
    if not found.startswith("utf-8"):
        return f"--encoding {found}"
    return SKIP if reading.encoding else LATIN_1


def _iter_jsonl(path: Path, reading: Reading) -> Iterator[str]:
    for number, raw in enumerate(_iter_lines(path, reading), start=1):
        reading.advance(len(raw))
        try:
            text = _read_line(raw, reading)
        except _Bad as bad:
            look = f"sed -n {number}p {shlex.quote(str(path))}  # or leave such lines out with --skip-bad"
            reading.refuse(bad.reason, DataError(f"{path}:{number}{bad.message}", bad.hint or look))
            continue
        if text is not None:
            yield from _iter_pieces(iter((text,)), reading)


def _iter_lines(path: Path, reading: Reading) -> Iterator[bytes]:
    """The lines of a JSONL file, in UTF-8 or in an encoding that extends ASCII.

    UTF-16 and UTF-32, whose line ends are more than a byte, are refused where `encoding` does not name them.
    """
    encoding = _choose_encoding(path, reading)
    if encoding == "utf-8-sig":
        with path.open("rb") as file:
            yield from file
        return
    try:
        if encoding is None:
            raise UnicodeError("its bytes are those of " + _detect_encoding(path).upper())
        with path.open(encoding=encoding, newline="\n") as lines:
            yield from (line.encode() for line in lines)
        reading.num_recoded += 1
    except UnicodeError as error:
        name = (encoding or "utf-8").upper()
        fault = DataError(f"{path} is not {name}: {error}", _suggest_encoding(path, reading))
        reading.refuse(f"files that are not {name}", fault)


class _Bad(Exception):
    """A line or value that is no document. reason: for the counts; message: what follows the place."""

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason, self.message, self.hint = reason, message, hint


def _read_line(raw: bytes, reading: Reading) -> str | None:
    """The text of a line, "" for null, None for an empty line. Raises _Bad."""
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            if reading.encoding is None:
                raise error
            line = raw.decode(reading.encoding)
        except UnicodeError:
            name = (reading.encoding or "utf-8").upper()
            message = f" is not {name}: {error.reason} at byte {error.start}"
            raise _Bad(f"lines that are not {name}", message, SKIP if reading.encoding else LATIN_1) from None
        reading.num_recoded += 1
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Bad("lines that are not JSON", f" is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Bad("lines that are no JSON object", " is not a JSON object")
    name = reading.column
    if name not in value:
        have = ", ".join(map(repr, value)) or "none"
        texts = [key for key, item in value.items() if isinstance(item, str)]
        hint = f"--column {shlex.quote(max(texts, key=lambda key: len(value[key])))}" if texts else ""
        raise _Bad(f"lines without the key {name!r}", f" has no key {name!r}; its keys are {have}", hint)
    text = value[name]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _Bad(f"lines whose {name!r} is not text", f": {name!r} is {type(text).__name__}, not text")
    if not _is_utf8(text):
        message = f": {name!r} holds half a surrogate pair, which no UTF-8 text can hold"
        raise _Bad("lines with half a surrogate pair", message)
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _iter_parquet(path: Path, reading: Reading) -> Iterator[str]:
    with pq.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
        fault = _find_column_fault(file, path, reading.column)
        if fault is not None:
            reading.refuse(f"files without a text column {reading.column!r}", fault)
            return
        size, num_rows, row = path.stat().st_size, file.metadata.num_rows, 0
        for index in range(file.num_row_groups):
            group_rows, group_bytes = (
                file.metadata.row_group(index).num_rows,
                measure_group(file, index, reading.column),
            )
            rows = BATCH_BYTES * group_rows // max(1, group_bytes)
            for batch in file.iter_batches(max(1, min(rows, 1_000)), row_groups=[index], columns=[reading.column]):
                for value in _read_values(batch.column(0)):
                    row += 1
                    if isinstance(value, UnicodeDecodeError):
                        fault = f"{path}: row {row:,} of column {reading.column!r} is not UTF-8: {value.reason}"
                        reading.refuse("rows that are not UTF-8", DataError(fault, SKIP))
                    else:
                        yield from _iter_pieces(iter((value or "",)), reading)
                reading.advance(size * row // num_rows - size * (row - len(batch)) // num_rows)


def _read_values(array: pa.Array) -> Sequence[str | UnicodeDecodeError | None]:
    """The texts of a column of any text type; a value that is not UTF-8 becomes its error."""
    try:
        values = array.to_pylist()
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        return [_read_value(item) for item in array]


def _read_value(item: pa.Scalar) -> str | UnicodeDecodeError | None:
    try:
        value = item.as_py()
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        return error


def _find_column_fault(file: pq.ParquetFile, path: Path, column: str) -> DataError | None:
    schema = file.schema_arrow
    if column in schema.names and _holds_text(schema.field(column).type):
        return None
    have = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    texts = [field.name for field in schema if _holds_text(field.type)]
    hint = f"--column {shlex.quote(texts[0])}" if texts else SKIP
    if column not in schema.names:
        return DataError(f"{path} has no column {column!r}; its columns are {have}", hint)
    kind = schema.field(column).type
    return DataError(f"column {column!r} of {path} holds {kind}, not text; its columns are {have}", hint)


def _holds_text(kind: pa.DataType) -> bool:
    """Whether a column's values can be read as text: strings and bytes of every layout, and dictionaries of them."""
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)
