"""`hypernoise score`: scores a folder of images, on one process or many, resumable at any point."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..hypernoise_core.atomic_file import write_atomically
from ..hypernoise_core.rewards import Ensemble, score_in_batches
from ..hypernoise_core.rewards.reward import check_size
from ..hypernoise_core.text import printable
from .progress import progress_bar
from .prompt_files import read_csv_rows, read_text

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is read whatever the suffix says; other readers of Pillow start programs."""
TOTAL = "total"
_MOST_WAITING = 1 << 26  # pixels of images that wait for others of their size, 0.8 GB
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # what spreadsheets would compute, and what hides it here


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    image: str
    prompt: str
    scores: dict[str, float]
    """By reward, and their weighted sum as `total`."""


def score_folder(
    folder: Path, prompts_file: Path, rewards: Ensemble, table: Path, batch_size: int
) -> list[str]:
    """Writes image, prompt, each reward's score and the total into a CSV file, a line an image.

    A spreadsheet runs a cell that starts with =, +, - or @ as a formula, so that such a name or
    prompt stands behind an apostrophe in the table.

    Each process appends what it has scored to a file of its own beside the table; a run that starts
    again takes over what is there. The table itself is written once, when all images are done.

    Args:
        folder: searched for images, subfolders too.
        prompts_file: see `read_prompts`.
        rewards: on the device of this process.
        table: the CSV file.
        batch_size: images of one size scored at a time.

    Returns:
        What is wrong with the images that could not be scored, a sentence each.

    Raises:
        ValueError: there is no image, a prompt is missing, or the table holds other rewards.
    """
    state = PartialState()
    names = find_images(folder)
    prompts = read_prompts(prompts_file, names)
    columns = ["image", "prompt", *rewards.weights, TOTAL]
    table.parent.mkdir(parents=True, exist_ok=True)
    known = {row.image: row for row in _read_rows(table, columns)}
    for part in _parts(table):
        known.update({row.image: row for row in _read_rows(part, columns)})
    todo = [n for n in names if n not in known or known[n].prompt != prompts[n]]
    state.wait_for_everyone()  # before anybody writes
    own = todo[state.process_index :: state.num_processes]
    part = table.with_name(f"{table.name}.part{state.process_index}")
    _cut_off_half_line(part)
    problems = _score(folder, own, prompts, rewards, part, columns, batch_size, state)
    state.wait_for_everyone()
    if state.is_main_process:
        for part in _parts(table):
            known.update({row.image: row for row in _read_rows(part, columns)})
        rows = [known[n] for n in names if n in known and known[n].prompt == prompts[n]]
        write_atomically(table, _as_csv([columns, *(_cells(row) for row in rows)]).encode())
        for part in _parts(table):
            part.unlink()
    state.wait_for_everyone()
    return problems


def find_images(folder: Path) -> list[str]:
    """Paths of the images below a folder, relative to it, with slashes, in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no image in it, or one whose name is no text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not (names := sorted(path.relative_to(folder).as_posix() for path in files)):
        raise ValueError(f"no image in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    for name in names:
        if "\0" in name or not _is_utf8(name):
            raise ValueError(f"{folder} holds {name!r}, a name that is not UTF-8: rename the file")
    return names


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_prompts(file: Path, names: Sequence[str]) -> dict[str, str]:
    """The prompt of each image.

    Args:
        file: a .csv with the columns image and prompt, or a text file: one line for all images, or
            a line for each in their alphabetical order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a prompt is missing, there are too many, or the file cannot be read; names the
            file and, where there is one, the line.
    """
    if file.suffix.lower() == ".csv":
        prompts = _read_csv(file)
        if lacking := [name for name in names if not prompts.get(name, "").strip()]:
            raise ValueError(
                f"{file} has no prompt for {len(lacking)} images, such as {lacking[0]}"
            )
        return prompts
    lines = [line.strip() for line in read_text(file)]
    for number, line in enumerate(lines, 1):
        _check(file, number, line)
    lines = [line for line in lines if line]
    if len(lines) == 1:
        lines *= len(names)
    if len(lines) != len(names):
        raise ValueError(
            f"{file} has {len(lines)} prompts for {len(names)} images: give one line for all or "
            f"one each, in the alphabetical order of the images, or a .csv with image and prompt"
        )
    return dict(zip(names, lines, strict=True))


def _read_csv(file: Path) -> dict[str, str]:
    """The column prompt by the column image."""
    rows = read_csv_rows(file)
    _, header = next(rows, (1, []))
    for name in ("image", "prompt"):
        if header.count(name) != 1:
            raise ValueError(f"{file} has no column {name}, or several; it takes one")
    image, prompt = header.index("image"), header.index("prompt")
    prompts: dict[str, str] = {}
    for line, row in rows:
        _check(file, line, row[prompt])
        if prompts.setdefault(row[image], row[prompt]) != row[prompt]:
            raise ValueError(f"{file}, line {line}: {row[image]!r:.100} has another prompt above")
    return prompts


def _check(file: Path, line: int, prompt: str) -> None:
    if "\0" in prompt:
        raise ValueError(f"{file}, line {line}: the character '\\x00' is part of no prompt")


def read_image(path: Path) -> Tensor:
    """(3, H, W) in [0, 1]; what is transparent becomes white, and the camera's turn is undone.

    Raises:
        ValueError: the file is no image, is damaged, or has a size that cannot be scored.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with Image.open(path, formats=FORMATS) as file:
            check_size(file.height, file.width)  # before it is unpacked
            image = _eight_bits(ImageOps.exif_transpose(file)).convert("RGBA")
    except Exception as error:  # damage ends in errors of many kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits with 8, which Pillow itself would cut off instead of scaling."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535) / 257
    return Image.fromarray(values.round().astype(np.uint8))


def _score(
    folder: Path,
    names: Sequence[str],
    prompts: Mapping[str, str],
    rewards: Ensemble,
    part: Path,
    columns: list[str],
    batch_size: int,
    state: PartialState,
) -> list[str]:
    """Scores images of one size together and appends them to `part`; returns the problems."""
    problems: list[str] = []
    waiting: dict[tuple[int, int], list[tuple[str, Tensor]]] = defaultdict(list)
    bar = progress_bar(
        total=len(names), desc="scoring", unit="image", disable=not state.is_main_process
    )

    def flush(size: tuple[int, int]) -> None:
        batch = waiting.pop(size)
        chosen = [prompts[name] for name, _ in batch]
        images = torch.stack([image for _, image in batch])
        try:
            scores = score_in_batches(rewards, images, chosen, batch_size=batch_size)
        except ValueError as error:
            problems.extend(f"{folder / name}: {error}" for name, _ in batch)
        else:
            scores[TOTAL] = rewards.total(scores)
            rows = [
                Row(name, prompts[name], {key: float(v[i]) for key, v in scores.items()})
                for i, (name, _) in enumerate(batch)
            ]
            _append(part, columns, rows)
        bar.update(len(batch))

    with bar:
        for name in names:
            try:
                image = read_image(folder / name)
            except ValueError as error:
                problems.append(str(error))
                bar.update()
                continue
            size = (image.shape[1], image.shape[2])
            waiting[size].append((name, image))
            if len(waiting[size]) == batch_size:
                flush(size)
            elif sum(len(of) * s[0] * s[1] for s, of in waiting.items()) > _MOST_WAITING:
                flush(max(waiting, key=lambda s: len(waiting[s]) * s[0] * s[1]))
        for size in list(waiting):
            flush(size)
    for complaint in rewards.complaints([prompts[name] for name in names]):
        tqdm.write(printable(complaint), file=sys.stderr)
    return problems


def _parts(table: Path) -> list[Path]:
    return sorted(table.parent.glob(f"{glob.escape(table.name)}.part*"))


def _append(part: Path, columns: list[str], rows: Sequence[Row]) -> None:
    header = [] if part.is_file() and part.stat().st_size else [columns]
    with part.open("a", encoding="utf-8", newline="") as file:
        file.write(_as_csv([*header, *(_cells(row) for row in rows)]))


def _read_rows(file: Path, columns: list[str]) -> list[Row]:
    """The whole lines of a table; a line that a crash has cut short is left out.

    Raises:
        ValueError: the table has other columns.
    """
    if not file.is_file():
        return []
    try:
        text = _whole_lines(file).decode("utf-8")
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise _no_table(file, error) from error
    if lines and lines[0] != columns:
        raise ValueError(
            f"{file} has the columns {', '.join(lines[0])}, this run would write "
            f"{', '.join(columns)}: choose another --csv, or delete it to start anew"
        )
    try:
        return [_row(columns, cells) for cells in lines[1:] if len(cells) == len(columns)]
    except ValueError as error:
        raise _no_table(file, error) from error


def _no_table(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} is no table of scores ({error}): choose another --csv, or delete it to start anew"
    )


def _row(columns: list[str], cells: list[str]) -> Row:
    scores = dict(zip(columns[2:], map(float, cells[2:]), strict=True))
    return Row(_bare(cells[0]), _bare(cells[1]), scores)


def _whole_lines(file: Path) -> bytes:
    whole, newline, _ = file.read_bytes().rpartition(b"\r\n")
    return whole + newline


def _cut_off_half_line(part: Path) -> None:
    """What is appended has to start on a line of its own."""
    if part.is_file():
        os.truncate(part, len(_whole_lines(part)))


def _cells(row: Row) -> list[str]:
    scores = (f"{score:.7g}" for score in row.scores.values())
    return [_as_text(row.image), _as_text(row.prompt), *scores]


def _as_text(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _bare(cell: str) -> str:
    """What `_as_text` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _as_csv(lines: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(lines)
    return buffer.getvalue()
