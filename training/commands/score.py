"""`hypernoise score`: scores a folder of images on one or more processes, and can be resumed."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import posixpath
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from ...hypernoise_core.atomic_file import write_atomically, write_target
from ...hypernoise_core.file_identity import sha256_of
from ...hypernoise_core.rewards import (
    Ensemble,
    load_rewards,
    parse_weights,
    reward_identities,
    score_in_batches,
)
from ...hypernoise_core.text import printable
from ..image_files import SUFFIXES, find_images, read_image
from ..locking import passing_lock
from ..processes import join
from ..progress import keep_loading_quiet, progress_bar
from ..prompt_files import IMAGE_COLUMNS, Entry, read_entries
from ..writable import check_file
from .settings import ScoreConfig

TOTAL, IDENTITY = "total", "identity"
_MOST_WAITING = 1 << 26  # pixels of images that wait for others of their size, 0.8 GB
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # a cell that spreadsheets would run, or one escaped here


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    image: str
    prompt: str
    scores: dict[str, float]
    """By reward."""
    identity: str
    """Hash of the image's content and of what scored it, see `_Table.identity`."""


def run(config: ScoreConfig) -> None:
    """Scores a folder and prints the path of the table.

    Raises:
        ValueError: some images could not be scored; names each. The others are in the table.
    """
    check_file(config.csv, "--csv", replace=True)  # `score_folder` refuses to replace other tables
    keep_loading_quiet()
    dtype = getattr(torch, config.precision)
    rewards = load_rewards(parse_weights(config.rewards), config.rewards_folder, dtype)
    scorer = reward_identities(rewards.weights, config.rewards_folder)
    scorer |= {"precision": config.precision}
    rewards = rewards.to(join().device)
    problems = score_folder(
        config.images, config.prompts, rewards, config.csv, config.batch_size, scorer
    )
    print(config.csv.resolve())
    if problems:
        raise ValueError(f"{len(problems)} images are not in the table:\n" + "\n".join(problems))


def score_folder(
    folder: Path,
    prompts_file: Path,
    rewards: Ensemble,
    table: Path,
    batch_size: int,
    scorer: Mapping[str, str],
) -> list[str]:
    """Writes a CSV file with one row per image: image, prompt, the score of each reward, the total.

    Spreadsheets run a cell that starts with =, +, - or @ as a formula, so such a name or prompt
    gets an apostrophe in front.

    Each process appends its scores to its own file next to the table. A resumed run keeps the
    scores of unchanged images, prompts and scorers, and prints how many it does not keep. The table
    itself is written once, when all images are done. A lock file keeps other runs away meanwhile.

    Args:
        folder: searched for images, including its subfolders.
        prompts_file: see `read_prompts`.
        rewards: on the device of this process.
        table: the CSV file.
        batch_size: images of one size to score at a time.
        scorer: what determines the scores besides image and prompt: the identity of each reward's
            weights, and the precision.

    Returns:
        One sentence for each image that could not be scored.

    Raises:
        ValueError: there are no images, a prompt is missing, the table has other rewards or belongs
            to another folder, or another run is writing it.
        OSError: the table cannot be written; names it.
    """
    state = PartialState()
    names = find_images(folder)
    prompts = read_prompts(prompts_file, folder, names)
    scores = _Table(write_target(table), folder, prompts.of_image, rewards.weights, scorer)
    with _locked(scores.file, state):
        return _score_all(names, prompts, rewards, scores, batch_size, state)


@contextmanager
def _locked(file: Path, state: PartialState) -> Iterator[None]:
    """Keeps other runs away from a table. The main process holds the lock for all processes, and
    all of them raise if it cannot be acquired."""
    # Longer than the name of any part, so that a name that is too long fails here.
    path = file.with_name(f".{file.name}.scoring.lock")
    refusal = f"{file}: another run is writing it; wait for it or stop it, or choose another --csv"
    with ExitStack() as stack:
        problem = [None]
        if state.is_main_process:
            try:
                stack.enter_context(passing_lock(path, refusal))
            except ValueError as error:
                problem = [error]
            except OSError as error:
                text = f"{file} cannot be locked ({error.strerror}): choose another --csv"
                problem = [type(error)(text)]
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]
        yield


def _score_all(
    names: Sequence[str],
    prompts: Prompts,
    rewards: Ensemble,
    scores: _Table,
    batch_size: int,
    state: PartialState,
) -> list[str]:
    """Scores the images that have no scores yet and writes the table; returns the problems."""
    earlier = scores.rows()
    state.wait_for_everyone()  # no process writes before all have read
    if state.is_main_process:
        scores.take_over(earlier)
    state.wait_for_everyone()
    known = {row.image for row in scores.rows()}
    todo = [name for name in names if name in prompts.of_image and name not in known]
    own = todo[state.process_index :: state.num_processes]
    problems = _score(own, rewards, scores, batch_size, state)
    state.wait_for_everyone()
    if state.is_main_process:
        scores.write(scores.rows())
        problems += prompts.problems
    state.wait_for_everyone()
    return problems


@dataclass(frozen=True)
class Prompts:
    """The prompts that a file gives for the images of a folder."""

    of_image: dict[str, str]
    """The prompt of each image."""
    problems: list[str]
    """One sentence for each prompt whose image is not in the folder, and for each image without a
    prompt whose format is not supported."""


def read_prompts(file: Path, folder: Path, names: Sequence[str]) -> Prompts:
    """The prompt of each image.

    Args:
        file: as `prompt_files.read_file` reads it. If it names the images, in a column or as keys,
            names are compared regardless of slashes and Unicode form, and paths may be absolute.
            Otherwise it has one prompt for all images, or one per image in alphabetical order.
        names: names of the images in the folder, from `find_images`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a prompt is missing, there are too many, or the file cannot be read; names the
            file and, where there is one, the line.
    """
    entries = read_entries(file)
    if any(entry.image is not None for entry in entries):
        return _by_name(file, folder, names, entries)
    entries = [entry for entry in entries if entry.prompt]
    if unnamed := next((entry for entry in entries if entry.in_columns), None):
        raise ValueError(
            f"{file}, {unnamed.where}: there is no image name; add a column "
            f"{' or '.join(IMAGE_COLUMNS)} with the image of each prompt"
        )
    texts = [entry.prompt for entry in entries]
    if len(texts) == 1:
        texts *= len(names)
    if len(texts) != len(names):
        raise ValueError(
            f"{file} has {len(texts)} prompts for {len(names)} images: give one line for all or "
            f"one per image, in alphabetical order, or a .csv file with columns image and prompt"
        )
    return Prompts(dict(zip(names, texts, strict=True)), [])


def _by_name(file: Path, folder: Path, names: Sequence[str], entries: Sequence[Entry]) -> Prompts:
    given: dict[str, Entry] = {}
    for entry in entries:
        if not entry.image:
            raise ValueError(f"{file}, {entry.where}: the image name is missing")
        first = given.setdefault(_plain(entry.image, folder), entry)
        if first.prompt != entry.prompt:
            raise ValueError(
                f"{file}, {entry.where}: {entry.image!r:.100} has a different prompt in "
                f"{first.where}"
            )
    plain = {name: _plain(name, folder) for name in names}
    images = set(plain.values())
    strangers = [entry for image, entry in given.items() if image not in images]
    told = {image for image, entry in given.items() if entry.prompt}
    without = [name for name in names if plain[name] not in told]
    if lacking := [name for name in without if Path(name).suffix.lower() in SUFFIXES]:
        hint = f"; it names {strangers[0].image!r:.100}, which does not exist" if strangers else ""
        raise ValueError(
            f"{file} has no prompt for {len(lacking)} images, such as {lacking[0]}{hint}"
        )
    return Prompts(
        {name: given[image].prompt for name, image in plain.items() if image in told},
        [f"{file}, {e.where}: there is no image {e.image!r:.100} in {folder}" for e in strangers]
        + [f"{folder / name} has an unsupported format; save it as .png" for name in without],
    )


def _plain(name: str, folder: Path) -> str:
    """The path of an image relative to the folder, in a form that is the same on every system."""
    name = _slashes(name.strip())
    for top in (folder.absolute(), folder.resolve()):
        name = name.removeprefix(f"{_slashes(str(top))}/")
    return posixpath.normpath(name)


def _slashes(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _score(
    names: Sequence[str], rewards: Ensemble, table: _Table, batch_size: int, state: PartialState
) -> list[str]:
    """Scores images of one size together and appends them to this process's part of the table;
    returns the problems."""
    problems: list[str] = []
    waiting: dict[tuple[int, int], list[tuple[str, Tensor]]] = defaultdict(list)
    bar = progress_bar(
        total=len(names), desc="scoring", unit="image", disable=not state.is_main_process
    )

    def flush(size: tuple[int, int]) -> None:
        batch = waiting.pop(size)
        chosen = [table.prompts[name] for name, _ in batch]
        images = torch.stack([image for _, image in batch])
        try:
            scores = score_in_batches(rewards, images, chosen, batch_size=batch_size)
        except ValueError as error:
            problems.extend(f"{table.folder / name}: {error}" for name, _ in batch)
        else:
            columns = zip(*(values.tolist() for values in scores.values()), strict=True)
            of_images = [dict(zip(scores, numbers, strict=True)) for numbers in columns]
            table.append([name for name, _ in batch], of_images, state.process_index)
        bar.update(len(batch))

    with bar:
        for name in names:
            try:
                image = read_image(table.folder / name)
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
    for warning in rewards.prompt_warnings([table.prompts[name] for name in names]):
        tqdm.write(printable(warning), file=sys.stderr)
    return problems


@dataclass(frozen=True)
class _Table:
    """The table's file, and the parts next to it that the processes append to."""

    file: Path
    folder: Path
    """Folder of the images."""
    prompts: Mapping[str, str]
    """Prompt by image."""
    weights: Mapping[str, float]
    """Weight by reward."""
    scorer: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        return ["image", "prompt", *self.weights, TOTAL, IDENTITY]

    @property
    def _parts(self) -> list[Path]:
        return sorted(self.file.parent.glob(f"{glob.escape(self.file.name)}.part*"))

    def identity(self, image: str) -> str:
        """16 hexadecimal digits of a hash of an image's content and of what scores it. The weights
        in the sum are not part of it, since the sum is computed anew each time."""
        content = sha256_of(self.folder / image)
        text = json.dumps([content, dict(self.scorer)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rows(self) -> list[Row]:
        """The rows in the table and the parts, one per image.

        Raises:
            ValueError: one of the files has other columns.
        """
        files = [self.file, *self._parts]
        return list({row.image: row for file in files for row in self._read(file)}.values())

    def take_over(self, rows: Sequence[Row]) -> None:
        """Keep the rows whose image, prompt and scorer are unchanged; print how many are not kept.

        Raises:
            ValueError: none of the rows is for an image in the folder.
        """
        if not rows:
            self._remove_parts()  # a crash may have left half a line
            return
        here = [row for row in rows if row.image in self.prompts]
        if not here:
            raise ValueError(
                f"{self.file} contains scores of other images, none of them in {self.folder}: "
                f"choose another --csv, or delete the file to start over"
            )
        good = [row for row in here if self._holds(row)]
        if others := len(rows) - len(here):
            _say(f"{others} rows of {self.file} are for images that are gone: they are dropped")
        if stale := len(here) - len(good):
            _say(
                f"{stale} rows of {self.file} are for another image, prompt, precision or reward "
                f"weights: they are scored again"
            )
        self.write(good)

    def _holds(self, row: Row) -> bool:
        if row.prompt != self.prompts[row.image] or not (self.folder / row.image).is_file():
            return False
        return row.identity == self.identity(row.image)

    def append(
        self, images: Sequence[str], scores: Sequence[dict[str, float]], process: int
    ) -> None:
        """Append images and their scores, by reward, to the part of a process."""
        part = self.file.with_name(f"{self.file.name}.part{process}")
        pairs = zip(images, scores, strict=True)
        rows = [Row(name, self.prompts[name], own, self.identity(name)) for name, own in pairs]
        header = [] if part.is_file() and part.stat().st_size else [self.columns]
        with part.open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv([*header, *map(self._cells, rows)]))

    def write(self, rows: Sequence[Row]) -> None:
        """Rewrite the table, sorted by image, and remove the parts."""
        ordered = sorted(rows, key=lambda row: row.image)
        write_atomically(self.file, _as_csv([self.columns, *map(self._cells, ordered)]).encode())
        self._remove_parts()

    def _remove_parts(self) -> None:
        for part in self._parts:
            part.unlink()

    def _cells(self, row: Row) -> list[str]:
        total = sum(weight * row.scores[name] for name, weight in self.weights.items())
        scores = (f"{score:.7g}" for score in (*(row.scores[n] for n in self.weights), total))
        return [_as_text(row.image), _as_text(row.prompt), *scores, row.identity]

    def _read(self, file: Path) -> list[Row]:
        """The rows of the table or of a part; a last line cut off by a crash is dropped.

        Raises:
            ValueError: the table has other columns.
        """
        if not file.is_file():
            return []
        try:
            content = file.read_bytes() if file == self.file else _whole_lines(file)
            text = content.decode("utf-8-sig")  # a spreadsheet may have saved it
            lines = list(csv.reader(io.StringIO(text, newline="")))
        except (ValueError, csv.Error) as error:
            raise _no_table(file, error) from error
        if lines and lines[0] != self.columns:
            raise ValueError(
                f"{file} has the columns {', '.join(lines[0])}, but this run would write "
                f"{', '.join(self.columns)}: choose another --csv, or delete the file to start over"
            )
        try:
            return [self._row(cells) for cells in lines[1:] if len(cells) == len(self.columns)]
        except ValueError as error:
            raise _no_table(file, error) from error

    def _row(self, cells: list[str]) -> Row:
        image, prompt, *scores, _, identity = cells
        numbers = dict(zip(self.weights, map(float, scores), strict=True))
        return Row(_bare(image), _bare(prompt), numbers, identity)


def _no_table(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} is not a table of scores ({error}): choose another --csv, or delete the file to "
        f"start over"
    )


def _whole_lines(file: Path) -> bytes:
    whole, newline, _ = file.read_bytes().rpartition(b"\r\n")
    return whole + newline


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _as_text(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _bare(cell: str) -> str:
    """The inverse of `_as_text`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _as_csv(lines: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(lines)
    return buffer.getvalue()
