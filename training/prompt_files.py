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
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _clean(str(path), READERS[path.suffix.lower()](path, column))


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


def _text(path: Path) -> io.StringIO:
    """The file's text, whatever ends its lines."""
    try:
        return io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8; save the file as that") from None


def _read_txt(path: Path, column: str | None) -> Entries:
    return ((f"line {number}", line) for number, line in enumerate(_text(path), 1))


def _read_json(path: Path, column: str | None) -> Entries:
    content = _parse(path, 1, _text(path).read())
    if isinstance(content, dict):
        return ((f"key {key!r}", text) for key, text in content.items())
    if not isinstance(content, list):
        raise ValueError(f"{path} holds neither a list nor an object of prompts")
    return _values(path, ((f"entry {i}", entry) for i, entry in enumerate(content, 1)), column)


def _read_jsonl(path: Path, column: str | None) -> Entries:
    lines = ((i, line) for i, line in enumerate(_text(path), 1) if line.strip())
    return _values(path, ((f"line {i}", _parse(path, i, line)) for i, line in lines), column)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: this is no JSON: {error.msg}") from error


def _values(path: Path, entries: Entries, column: str | None) -> Entries:
    """Texts as they are, and of objects the value below the key that the first of them has."""
    key = None
    for where, entry in entries:
        if isinstance(entry, dict):
            key = key or _choose(f"{path}, {where}", list(entry), column)
            if key not in entry:
                raise ValueError(f"{path}, {where}: there is no {key} among {', '.join(entry)}")
            entry = entry[key]
        yield where, entry


def _read_csv(path: Path, column: str | None) -> Entries:
    rows = _csv_rows(path)
    _, header = next(rows, (1, []))
    position = header.index(_choose(str(path), header, column))
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} values for {len(header)} columns; a text that "
                f"holds a comma stands in double quotes"
            )
        yield f"line {line}", row[position]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line that each ends in."""
    reader = csv.reader(_text(path), strict=True)
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
    try:
        file = parquet.ParquetFile(path)
        column = _choose(str(path), file.schema_arrow.names, column)
        texts = file.read([column])[column].to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no .parquet file: {error}") from error
    return ((f"row {i}", text) for i, text in enumerate(texts, 1))


def _choose(source: str, columns: Sequence[str], asked: str | None) -> str:
    """The column of the prompts.

    Raises:
        ValueError: there is none; lists those that there are.
    """
    wanted = COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in columns:
            return name
    raise ValueError(
        f"{source} has no column {' or '.join(wanted)}, only {', '.join(columns) or 'none'}; name "
        f"the one that holds the prompts"
    )


READERS: dict[str, Callable[[Path, str | None], Entries]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""By suffix: a text a line; a list of texts or objects, or an object of texts; a text or an object
a line; columns."""
