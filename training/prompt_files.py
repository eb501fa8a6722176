"""Prompts from text, JSON, CSV and Parquet files, and from datasets on the Hugging Face hub."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..hypernoise_core.hub import arriving
from ..hypernoise_core.links import is_inside
from ..hypernoise_core.text_file import is_blank, lines, read_text

COLUMNS = ("prompt", "caption", "text")
"""Names of the prompt column; the first one present is used."""
IMAGE_COLUMNS = ("image", "file_name")
"""Names of the image column; the second is that of `datasets`' image folders."""

_SHOWN = 20  # columns in a message
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")  # the file is binary or damaged
# Control characters, and byte order marks inside concatenated files: they occur in real prompts.
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_DELIMITERS = (",", ";", "\t")  # of .csv files: depends on the language of the spreadsheet program
_TRAINING = {"train", "training"}
_HELD_BACK = {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


@dataclass(frozen=True)
class Entry:
    """A prompt as found in a source."""

    where: str
    """Its place in the source, such as `line 3`."""
    prompt: Any
    """A string if the source is valid."""
    image: str | None = None
    """The name of its image, if the source gives one."""
    in_columns: bool = False
    """Whether the source has columns or keys."""


Entries = Iterable[Entry]


def read_file(path: Path, column: str | None = None) -> list[str]:
    """The prompts of a file in order, with repetitions and without surrounding whitespace.

    Prompts without a visible character are dropped. Control characters become spaces.

    Args:
        path: a file with one of the suffixes in `READERS`; a pipe or a file without a suffix is
            read as text.
        column: name of the prompt column or key; None: the first of `COLUMNS` that is present.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no such column; names the file and the line.
        ImportError: a package is missing; names it and the command that installs it.
    """
    return _prompts(read_entries(path, column))


def read_prompts(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    """The given prompts, followed by those of a file as `read_file` returns them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no prompts, or the file cannot be read.
    """
    typed = [prompt.strip() for prompt in prompts]
    found = [*typed, *(read_file(file) if file else [])]
    if not found:
        raise ValueError("no prompts: give --prompts 'a red circle' or --prompts-file FILE")
    return found


def read_entries(path: Path, column: str | None = None) -> list[Entry]:
    """Like `read_file`, with the place and the image of each prompt. Prompts without a visible
    character are included as empty strings.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_file` raises them.
    """
    return _clean(str(path), _reader_of(path)(path, column))


def _reader_of(path: Path) -> Callable[[Path, str | None], Entries]:
    """The reader for a file, from `READERS`.

    Raises:
        ValueError: the suffix is not supported.
    """
    suffix = path.suffix.lower()
    if not suffix:
        return _read_txt
    if suffix not in READERS:
        raise ValueError(
            f"{path}: cannot read prompts from a {suffix} file; use {', '.join(READERS)}, or a "
            f"text file without a suffix"
        )
    return READERS[suffix]


def read_folder(folder: Path, column: str | None = None) -> list[str]:
    """The prompts of all prompt files in a folder and its subfolders, as `read_file` returns them.

    Files named after a split other than `train` are ignored, as in the library `datasets`. Other
    files have no effect, and links out of the folder are refused, so nothing outside it is read.

    Raises:
        ValueError: there are no such files, files of several types, or a link out of the folder; or
            as `read_file` raises it.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in READERS and p.is_file())
    files = [path for path in files if not _is_hidden(path.relative_to(folder))]
    splits = {path: _words(path.relative_to(folder)) for path in files}
    training = [path for path in files if not _TRAINING.isdisjoint(splits[path])]
    chosen = training or [path for path in files if _HELD_BACK.isdisjoint(splits[path])]
    if not chosen:
        held_back = " of the split train, only of others" if files else ""
        raise ValueError(
            f"the dataset {folder} contains no prompt files ({', '.join(READERS)}){held_back}"
        )
    if len(kinds := sorted({path.suffix.lower() for path in chosen})) > 1:
        raise ValueError(
            f"the dataset {folder} contains {' and '.join(kinds)} files; name one of the files"
        )
    root = folder.resolve()
    if away := next((path for path in chosen if not is_inside(path.resolve(), root)), None):
        raise ValueError(
            f"the dataset {folder} contains a link out of the folder, {away}, which is not "
            f"followed; put the file itself there, or name it"
        )
    try:
        return [prompt for path in chosen for prompt in read_file(path, column)]
    except ValueError as error:
        raise ValueError(f"cannot read the dataset {folder}: {error}") from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_./\\ \d]+", str(path).lower()))


def read_data_set(name: str, column: str | None = None) -> list[str]:
    """The prompts in the split `train` of a dataset, as `read_file` returns them.

    Args:
        name: a repository on the Hugging Face hub that the library `datasets` can read.

    Raises:
        ValueError: there is no such dataset, split or column.
        ImportError: a package is missing; names it and the command that installs it.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"the dataset {name} needs datasets: pip install datasets") from error
    try:
        with arriving(f"the dataset {name}"):
            rows = load_dataset(name, split="train")
    except OSError as error:
        raise ValueError(f"cannot read the split train of {name}: {error}") from error
    column = _choose(f"the dataset {name}", rows.column_names, column)
    texts = rows.select_columns(column)[column]  # other columns may be images, slow to decode
    entries = (Entry(f"row {i}", text) for i, text in enumerate(texts, 1))
    return _prompts(_clean(f"the dataset {name}", entries))


def _prompts(entries: Sequence[Entry]) -> list[str]:
    return [entry.prompt for entry in entries if entry.prompt]


def _clean(source: str, entries: Entries) -> list[Entry]:
    """The entries that have a prompt, each cleaned by `clean_prompt`."""
    there = (entry for entry in entries if entry.prompt is not None)
    return [replace(e, prompt=clean_prompt(source, e.where, e.prompt)) for e in there]


def clean_prompt(source: str, where: str, text: Any) -> str:
    """A prompt without surrounding whitespace; empty if it has no visible character. Control
    characters count as whitespace.

    Raises:
        ValueError: it is not a string, or contains an invalid character; names the source and the
            place.
    """
    if not isinstance(text, str):
        raise ValueError(f"{source}, {where}: a prompt must be a string, not {text!r:.60}")
    if found := _NO_TEXT.search(text):
        raise ValueError(
            f"{source}, {where}: a prompt cannot contain the character {found[0]!r}; remove it"
        )
    text = _CONTROL.sub(" ", "\n".join(lines(text))).strip()
    return "" if is_blank(text) else text


def _read_txt(path: Path, column: str | None) -> Entries:
    return (Entry(f"line {i}", line) for i, line in enumerate(lines(read_text(path)), 1))


def _read_json(path: Path, column: str | None) -> Entries:
    """A list of strings or objects; or an object of these, whose keys may name images."""
    content = _parse(path, 1, read_text(path))
    if isinstance(content, list):
        return _values(path, ((f"entry {i}", e) for i, e in enumerate(content, 1)), column)
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains neither a list nor an object of prompts")
    entries = _values(path, ((f"key {key!r}", value) for key, value in content.items()), column)
    return (replace(e, image=e.image or key) for e, key in zip(entries, content, strict=True))


def _read_jsonl(path: Path, column: str | None) -> Entries:
    return _values(path, ((f"line {i}", value) for i, _, value in json_lines(path)), column)


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """The lines of a file that are not blank: number, text and JSON value of each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not JSON; names the file and the line.
    """
    for number, line in enumerate(lines(read_text(path)), 1):
        if not is_blank(line):
            yield number, line, _parse(path, number, line)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: invalid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"{path}, line {first_line}: cannot read this JSON: {error}") from error


def _values(path: Path, items: Iterable[tuple[str, Any]], column: str | None) -> Entries:
    """Strings as they are; of objects, the value at the prompt key that the first one has."""
    key = None
    for where, item in items:
        if not isinstance(item, Mapping):
            yield Entry(where, item)
            continue
        key = key or _choose(f"{path}, {where}", list(item), column)
        if key not in item:
            raise ValueError(f"{path}, {where}: there is no key {key}, only {_listed(item)}")
        names = (item.get(name) for name in IMAGE_COLUMNS)
        image = next((name for name in names if isinstance(name, str)), None)
        yield Entry(where, item[key], image, in_columns=True)


def _read_csv(path: Path, column: str | None) -> Entries:
    return _read_table(path, column, _DELIMITERS)


def _read_tsv(path: Path, column: str | None) -> Entries:
    return _read_table(path, column, ("\t",))


def _read_table(path: Path, column: str | None, delimiters: Sequence[str]) -> Entries:
    text = read_text(path)
    delimiter = _delimiter(path, text, column, delimiters)
    names = _header(path, text, delimiter)
    prompt = _place(str(path), names, _choose(str(path), names, column))
    image_name = next((name for name in IMAGE_COLUMNS if name in names), None)
    image = None if image_name is None else _place(str(path), names, image_name)
    rows = _whole_rows(path, text, delimiter)
    next(rows, None)  # the header
    return (
        Entry(f"line {line}", row[prompt], None if image is None else row[image], in_columns=True)
        for line, row in rows
    )


def _delimiter(path: Path, text: str, column: str | None, delimiters: Sequence[str]) -> str:
    """The first delimiter that yields a prompt column; if there is none, the first of all."""
    wanted = set(COLUMNS if column is None else (column,))
    for delimiter in delimiters:
        with suppress(ValueError):  # with the wrong delimiter, the row may be invalid CSV
            if wanted & set(_header(path, text, delimiter)):
                return delimiter
    return delimiters[0]


def _header(path: Path, text: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(_csv_rows(path, text, delimiter), (1, []))[1]]


def _whole_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of `_csv_rows`, all of which must be as long as the first."""
    columns = None
    for line, row in _csv_rows(path, text, delimiter):
        columns = columns or len(row)
        if len(row) != columns:
            raise ValueError(
                f"{path}, line {line}: {len(row)} values for {columns} columns; put text that "
                f"contains a {_DELIMITER_NAMES[delimiter]} in double quotes"
            )
        yield line, row


_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line in which each ends."""
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: invalid CSV: {error}") from error


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
        raise ValueError(f"{path} is damaged or not a .parquet file: {error}") from error
    return (Entry(f"row {i}", text, in_columns=True) for i, text in enumerate(texts, 1))


def _choose(source: str, columns: Sequence[str], asked: str | None) -> str:
    """The name of the prompt column.

    Raises:
        ValueError: there is none, or several; lists the columns.
    """
    wanted = COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in columns:
            return columns[_place(source, columns, name)]
    raise ValueError(
        f"{source} has no column {' or '.join(wanted)}, only {_listed(columns)}; name the one with "
        f"the prompts"
    )


def _place(source: str, columns: Sequence[str], name: str) -> int:
    """The index of the column with that name.

    Raises:
        ValueError: several columns have it.
    """
    if list(columns).count(name) > 1:
        raise ValueError(f"{source} has several columns named {name}; keep one of them")
    return list(columns).index(name)


def _listed(names: Iterable[str]) -> str:
    """The first of the names, short enough for a message."""
    names = list(names)
    shown = ", ".join(f"{name:.40}" for name in names[:_SHOWN]) or "none"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


READERS: dict[str, Callable[[Path, str | None], Entries]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""By suffix: one prompt per line; a list or an object of strings or objects; one string or object
per line; columns."""
