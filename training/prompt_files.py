"""Files and data sets that hold prompts: text, JSON, CSV, Parquet, and the Hugging Face hub's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "caption", "text")
"""Where prompts are looked for in a file with columns: the first one present."""

_SHOWN = 20  # columns in a message
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")  # of a file that is none of text, or broken
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # occur in people's prompts

Entries = Iterable[tuple[str, Any]]
"""Where in a source something stands, such as `line 3`, and what stands there."""


def read_file(path: Path, column: str | None = None) -> list[str]:
    """The prompts of a file in its order, repeated ones too, without surrounding whitespace.

    Empty ones are left out. Control characters become spaces.

    Args:
        path: its suffix is one of `READERS`.
        column: of the prompts, where there are columns or keys; None: the first of `COLUMNS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no such column; names the file and the line.
        ImportError: names the missing package and the command that installs it.
    """
    return _clean(str(path), READERS[path.suffix.lower()](path, column))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, whatever its suffix, as `read_file` gives those of a .txt."""
    return _clean(str(path), _read_txt(path, None))


def read_data_set(name: str, column: str | None = None) -> list[str]:
    """The prompts in the split `train` of a data set, as `read_file` gives them.

    Args:
        name: a folder with data files, or a repository of the Hugging Face hub, for the library
            `datasets`.

    Raises:
        ValueError: there is no such data set, split or column.
        ImportError: names the missing package and the command that installs it.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ImportError(f"the data set {name} needs datasets: pip install datasets") from error
    try:
        rows = load_dataset(name, split="train")
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else error
        raise ValueError(f"no data set {name} with a split train can be read: {reason}") from error
    column = _choose(f"the data set {name}", rows.column_names, column)
    texts = rows.select_columns(column)[column]  # the others may be images, slow to decode
    return _clean(f"the data set {name}", ((f"row {i}", t) for i, t in enumerate(texts, 1)))


def _clean(source: str, entries: Entries) -> list[str]:
    """The texts without surrounding whitespace; nulls and empty texts are left out.

    Control characters count as whitespace.
    """
    prompts = []
    for where, text in entries:
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"{source}, {where}: a prompt is a text, not {text!r:.60}")
        if found := _NO_TEXT.search(text):
            raise ValueError(
                f"{source}, {where}: the character {found[0]!r} is part of no prompt; take it out"
            )
        prompts.append(_CONTROL.sub(" ", text).strip())
    return [prompt for prompt in prompts if prompt]


def read_text(path: Path) -> io.StringIO:
    """The text of a UTF-8 file, whatever ends its lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8; names the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8; save the file as that") from None


def _read_txt(path: Path, column: str | None) -> Entries:
    return ((f"line {number}", line) for number, line in enumerate(read_text(path), 1))


def _read_json(path: Path, column: str | None) -> Entries:
    content = _parse(path, 1, read_text(path).read())
    if isinstance(content, dict):
        return ((f"key {key!r}", text) for key, text in content.items())
    if not isinstance(content, list):
        raise ValueError(f"{path} holds neither a list nor an object of prompts")
    return _values(path, ((f"entry {i}", entry) for i, entry in enumerate(content, 1)), column)


def _read_jsonl(path: Path, column: str | None) -> Entries:
    lines = ((i, line) for i, line in enumerate(read_text(path), 1) if line.strip())
    return _values(path, ((f"line {i}", _parse(path, i, line)) for i, line in lines), column)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: this is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"{path}, line {first_line}: this JSON cannot be read: {error}") from error


def _values(path: Path, entries: Entries, column: str | None) -> Entries:
    """Texts as they are, and of objects the value below the key that the first of them has."""
    key = None
    for where, entry in entries:
        if isinstance(entry, dict):
            key = key or _choose(f"{path}, {where}", list(entry), column)
            if key not in entry:
                raise ValueError(f"{path}, {where}: there is no {key} among {_listed(entry)}")
            entry = entry[key]
        yield where, entry


def _read_csv(path: Path, column: str | None) -> Entries:
    rows = read_csv_rows(path)
    _, header = next(rows, (1, []))
    position = header.index(_choose(str(path), header, column))
    return ((f"line {line}", row[position]) for line, row in rows)


def read_csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, the header first, with the line each ends in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has another length than the header, or the file is no CSV; names the file
            and the line.
    """
    columns = None
    for line, row in _csv_rows(path):
        columns = columns or len(row)
        if len(row) != columns:
            raise ValueError(
                f"{path}, line {line}: {len(row)} values for {columns} columns; a text that "
                f"holds a comma stands in double quotes"
            )
        yield line, row


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line that each ends in."""
    reader = csv.reader(read_text(path), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is no CSV: {error}") from error


def _read_parquet(path: Path, column: str | None) -> Entries:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError("prompts in a .parquet file need pyarrow: pip install pyarrow") from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open("rb") as source, parquet.ParquetFile(source) as file:
            column = _choose(str(path), file.schema_arrow.names, column)
            texts = file.read([column])[column].to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no .parquet file: {error}") from error
    return ((f"row {i}", text) for i, text in enumerate(texts, 1))


def _choose(source: str, columns: Sequence[str], asked: str | None) -> str:
    """The column of the prompts.

    Raises:
        ValueError: there is none, or several of that name; lists those that there are.
    """
    wanted = COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in columns:
            if list(columns).count(name) > 1:
                raise ValueError(f"{source} has several columns {name}; keep one of them")
            return name
    raise ValueError(
        f"{source} has no column {' or '.join(wanted)}, only {_listed(columns)}; name the one that "
        f"holds the prompts"
    )


def _listed(names: Iterable[str]) -> str:
    """The first of some names, short enough for a message."""
    names = list(names)
    shown = ", ".join(f"{name:.40}" for name in names[:_SHOWN]) or "none"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


READERS: dict[str, Callable[[Path, str | None], Entries]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""By suffix: a text a line; a list of texts or objects, or an object of texts; a text or an object
a line; columns."""
