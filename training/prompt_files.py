"""Files and data sets that hold prompts: text, JSON, CSV, Parquet, and the Hugging Face hub's."""

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
"""Where prompts are looked for in a file with columns: the first one present."""
IMAGE_COLUMNS = ("image", "file_name")
"""Where the names of images are looked for; the second is that of image folders."""

_SHOWN = 20  # columns in a message
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")  # of a file that is none of text, or broken
# Control characters, and the mark that stands inside of files that were joined: people's prompts
# have them.
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_DELIMITERS = (",", ";", "\t")  # of .csv files: a spreadsheet's language decides
_TRAINING = {"train", "training"}
_HELD_BACK = {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


@dataclass(frozen=True)
class Entry:
    """A prompt as a source holds it."""

    where: str
    """Its place in the source, such as `line 3`."""
    prompt: Any
    """A text, where the source is as it should be."""
    image: str | None = None
    """The name of the image that it belongs to, where the source names one."""
    in_columns: bool = False
    """Whether the source has more than the prompt to say, in columns or keys."""


Entries = Iterable[Entry]


def read_file(path: Path, column: str | None = None) -> list[str]:
    """The prompts of a file in its order, repeated ones too, without surrounding whitespace.

    Those on which nothing can be seen are left out. Control characters become spaces.

    Args:
        path: with one of the suffixes in `READERS`; without any, or a pipe, it is text.
        column: of the prompts, where there are columns or keys; None: the first of `COLUMNS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no such column; names the file and the line.
        ImportError: names the missing package and the command that installs it.
    """
    return _prompts(read_entries(path, column))


def read_prompts(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    """The given prompts and those of a file, as `read_file` gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no prompt, or the file cannot be read.
    """
    typed = [prompt.strip() for prompt in prompts]
    found = [*typed, *(read_file(file) if file else [])]
    if not found:
        raise ValueError("no prompt: give --prompts 'a red circle' or --prompts-file FILE")
    return found


def read_entries(path: Path, column: str | None = None) -> list[Entry]:
    """What `read_file` gives, with the place of each prompt and the image that it belongs to; those
    on which nothing can be seen too, as empty ones.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_file` raises them.
    """
    return _clean(str(path), _reader_of(path)(path, column))


def _reader_of(path: Path) -> Callable[[Path, str | None], Entries]:
    """The one of `READERS` that reads a file.

    Raises:
        ValueError: there is none for its suffix.
    """
    suffix = path.suffix.lower()
    if not suffix:
        return _read_txt
    if suffix not in READERS:
        raise ValueError(
            f"{path}: prompts are read from {', '.join(READERS)}, and as a line each from a file "
            f"without a suffix; {suffix} is none of these"
        )
    return READERS[suffix]


def read_folder(folder: Path, column: str | None = None) -> list[str]:
    """The prompts of all files of one kind in a folder and those below, as `read_file` gives them.

    Files that are named after another split than `train` are left out, as the library `datasets`
    does it; nothing else in the folder has a say, and no link out of it is followed, so nothing
    outside of it is read.

    Raises:
        ValueError: there is no such file, there are several kinds, or one is a link out of the
            folder; or as `read_file` raises it.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in READERS and p.is_file())
    files = [path for path in files if not _is_hidden(path.relative_to(folder))]
    splits = {path: _words(path.relative_to(folder)) for path in files}
    training = [path for path in files if not _TRAINING.isdisjoint(splits[path])]
    chosen = training or [path for path in files if _HELD_BACK.isdisjoint(splits[path])]
    if not chosen:
        held_back = " but those of other splits than train" if files else ""
        raise ValueError(
            f"no data set {folder}: it holds no file of prompts ({', '.join(READERS)}){held_back}"
        )
    if len(kinds := sorted({path.suffix.lower() for path in chosen})) > 1:
        raise ValueError(
            f"no data set {folder}: it holds {' and '.join(kinds)} files; name one of the files"
        )
    root = folder.resolve()
    if away := next((path for path in chosen if not is_inside(path.resolve(), root)), None):
        raise ValueError(
            f"no data set {folder}: {away} is a link out of the folder, which is not followed; put "
            f"the file itself there, or name it"
        )
    try:
        return [prompt for path in chosen for prompt in read_file(path, column)]
    except ValueError as error:
        raise ValueError(f"no data set {folder} can be read: {error}") from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_./\\ \d]+", str(path).lower()))


def read_data_set(name: str, column: str | None = None) -> list[str]:
    """The prompts in the split `train` of a data set, as `read_file` gives them.

    Args:
        name: a repository of the Hugging Face hub, for the library `datasets`.

    Raises:
        ValueError: there is no such data set, split or column.
        ImportError: names the missing package and the command that installs it.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"the data set {name} needs datasets: pip install datasets") from error
    try:
        with arriving(f"the data set {name}"):
            rows = load_dataset(name, split="train")
    except OSError as error:
        raise ValueError(f"no data set {name} with a split train can be read: {error}") from error
    column = _choose(f"the data set {name}", rows.column_names, column)
    texts = rows.select_columns(column)[column]  # the others may be images, slow to decode
    entries = (Entry(f"row {i}", text) for i, text in enumerate(texts, 1))
    return _prompts(_clean(f"the data set {name}", entries))


def _prompts(entries: Sequence[Entry]) -> list[str]:
    return [entry.prompt for entry in entries if entry.prompt]


def _clean(source: str, entries: Entries) -> list[Entry]:
    """The entries with their prompts as `clean_prompt` gives them, without nulls."""
    there = (entry for entry in entries if entry.prompt is not None)
    return [replace(e, prompt=clean_prompt(source, e.where, e.prompt)) for e in there]


def clean_prompt(source: str, where: str, text: Any) -> str:
    """A prompt without surrounding whitespace, empty where nothing of it can be seen; control
    characters count as whitespace.

    Raises:
        ValueError: it is no text, or holds what is part of none; names the source and the place.
    """
    if not isinstance(text, str):
        raise ValueError(f"{source}, {where}: a prompt is a text, not {text!r:.60}")
    if found := _NO_TEXT.search(text):
        raise ValueError(
            f"{source}, {where}: the character {found[0]!r} is part of no prompt; take it out"
        )
    text = _CONTROL.sub(" ", "\n".join(lines(text))).strip()
    return "" if is_blank(text) else text


def _read_txt(path: Path, column: str | None) -> Entries:
    return (Entry(f"line {i}", line) for i, line in enumerate(lines(read_text(path)), 1))


def _read_json(path: Path, column: str | None) -> Entries:
    """A list of texts or of objects; or an object of these, whose keys may name images."""
    content = _parse(path, 1, read_text(path))
    if isinstance(content, list):
        return _values(path, ((f"entry {i}", e) for i, e in enumerate(content, 1)), column)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds neither a list nor an object of prompts")
    entries = _values(path, ((f"key {key!r}", value) for key, value in content.items()), column)
    return (replace(e, image=e.image or key) for e, key in zip(entries, content, strict=True))


def _read_jsonl(path: Path, column: str | None) -> Entries:
    return _values(path, ((f"line {i}", value) for i, _, value in json_lines(path)), column)


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """The lines of a file that are not blank: the number of each, its text and what it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON; names the file and the line.
    """
    for number, line in enumerate(lines(read_text(path)), 1):
        if not is_blank(line):
            yield number, line, _parse(path, number, line)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: this is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"{path}, line {first_line}: this JSON cannot be read: {error}") from error


def _values(path: Path, items: Iterable[tuple[str, Any]], column: str | None) -> Entries:
    """Texts as they are, and of objects the value below the key that the first of them has."""
    key = None
    for where, item in items:
        if not isinstance(item, Mapping):
            yield Entry(where, item)
            continue
        key = key or _choose(f"{path}, {where}", list(item), column)
        if key not in item:
            raise ValueError(f"{path}, {where}: there is no {key} among {_listed(item)}")
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
    """The first one under which there is a column of prompts; else the first of all."""
    wanted = set(COLUMNS if column is None else (column,))
    for delimiter in delimiters:
        with suppress(ValueError):  # where it is not this one, the row may be no CSV at all
            if wanted & set(_header(path, text, delimiter)):
                return delimiter
    return delimiters[0]


def _header(path: Path, text: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(_csv_rows(path, text, delimiter), (1, []))[1]]


def _whole_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """What `_csv_rows` gives; all rows have to be as long as the first."""
    columns = None
    for line, row in _csv_rows(path, text, delimiter):
        columns = columns or len(row)
        if len(row) != columns:
            raise ValueError(
                f"{path}, line {line}: {len(row)} values for {columns} columns; a text that "
                f"holds a {_DELIMITER_NAMES[delimiter]} stands in double quotes"
            )
        yield line, row


_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line that each ends in."""
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=delimiter)
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
    return (Entry(f"row {i}", text, in_columns=True) for i, text in enumerate(texts, 1))


def _choose(source: str, columns: Sequence[str], asked: str | None) -> str:
    """The name of the prompts' column.

    Raises:
        ValueError: there is none, or several; lists those that there are.
    """
    wanted = COLUMNS if asked is None else (asked,)
    for name in wanted:
        if name in columns:
            return columns[_place(source, columns, name)]
    raise ValueError(
        f"{source} has no column {' or '.join(wanted)}, only {_listed(columns)}; name the one that "
        f"holds the prompts"
    )


def _place(source: str, columns: Sequence[str], name: str) -> int:
    """Which of the columns has that name.

    Raises:
        ValueError: several have it.
    """
    if list(columns).count(name) > 1:
        raise ValueError(f"{source} has several columns {name}; keep one of them")
    return list(columns).index(name)


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
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""By suffix: a text a line; a list or an object of texts or objects; a text or an object a line;
columns."""
