"""The prompts of a task: a named collection, a file, or a dataset."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prompt_files import READERS, read_data_set, read_file, read_folder
from .tiny_world.captions import Caption, captions_by_category

EXAMPLES = Path(__file__).parent / "data" / "example_prompts.txt"
TINY_WORLD_PER_CATEGORY = 1000
TINY_WORLD_HELD_OUT_PER_CATEGORY = 80

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def load_prompts(
    task: str, *, data_dir: Path | None = None, column: str | None = None
) -> list[str]:
    """The prompts of a task in the order of their source, without surrounding whitespace.

    Empty and repeated prompts are dropped, except in the tiny world's tasks, where small categories
    repeat their captions to weigh as much as large ones.

    Args:
        task: a key of `NAMED_TASKS`; else a folder of files with one of the suffixes in `READERS`,
            or such a file; else a hub repository `owner/name` whose split `train` the `datasets`
            library reads.
        data_dir: folder of the published prompt files, for the tasks geneval, pickapic and all.
        column: name of the prompt column in files and datasets with columns; None: the first one
            present of prompt, caption and text. Named tasks ignore it.

    Raises:
        FileNotFoundError: a file is missing; names it, the folders searched, and the source of a
            published one.
        ValueError: there is no such task, or a file cannot be read, has no such column or contains
            no prompts; names the file and, where there is one, the line.
        ImportError: a package is missing; names it and the command that installs it.
    """
    if task in NAMED_TASKS:
        prompts = NAMED_TASKS[task](data_dir)
    else:
        prompts = _unique(_read(task, column))
    if not prompts:
        raise ValueError(f"{task} contains no prompts; at least one is needed")
    return prompts


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """`count` items at equal distances; all of them if it is None."""
    count = len(items) if count is None else min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _read(task: str, column: str | None) -> list[str]:
    path = Path(task)
    if task.strip() and path.is_dir():
        return read_folder(path, column)
    if path.suffix.lower() in READERS:
        return read_file(path, column)
    if _REPOSITORY.fullmatch(task) and not path.exists():
        return read_data_set(task, column)
    raise ValueError(
        f"unknown task {task!r}: choose from {', '.join(NAMED_TASKS)}, or name a file "
        f"({', '.join(READERS)}), a folder of such files, or a dataset on the Hugging Face hub "
        f"(owner/name)"
    )


def _unique(prompts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(prompts))


# The tiny world


def tiny_world_captions(*, held_out: bool, per_category: int) -> list[Caption]:
    """The same number of captions from each category, repeated where a category has fewer.

    The choice is always the same.
    """
    rng = random.Random(0)
    chosen = []
    for pool in captions_by_category(held_out=held_out).values():
        rounds = -(-per_category // len(pool))
        chosen += [c for _ in range(rounds) for c in rng.sample(pool, len(pool))][:per_category]
    return chosen


def _tiny_world(held_out: bool, per_category: int) -> list[str]:
    captions = tiny_world_captions(held_out=held_out, per_category=per_category)
    return [caption.text for caption in captions]


# Published prompts


@dataclass(frozen=True)
class _Published:
    """Prompt files as downloaded from their authors."""

    name: str
    source: str
    folders: tuple[str, ...]
    """Names that the download may have in the user's folder; `.`: the folder is the download."""
    files: tuple[str, ...]


_GENEVAL = _Published(
    "GenEval",
    "https://github.com/djghosh13/geneval",
    ("geneval", "."),
    ("prompts/evaluation_metadata.jsonl",),
)
_T2I_COMPBENCH = _Published(
    "T2I-CompBench",
    "https://github.com/Karine-Huang/T2I-CompBench",
    ("T2I-CompBench", "."),
    tuple(
        f"examples/dataset/{category}_train.txt"
        for category in (
            "color", "complex", "texture", "shape", "spatial", "non_spatial", "numeracy",
        )
    ),
)  # fmt: skip
_ABC_6K = _Published(
    "ABC-6K",
    "https://github.com/weixi-feng/Structured-Diffusion-Guidance",
    ("Structured-Diffusion-Guidance", "ABC-6K", "."),
    ("ABC-6K.txt",),
)
_PICK_A_PIC = _Published(
    "Pick-a-Pic",
    "https://huggingface.co/datasets/yuvalkirstain/pickapic_v2 (the same captions without the "
    "images: yuvalkirstain/pickapic_v2_no_images)",
    ("pickapic_v2", "pickapic_v2_no_images", "pickapic", "."),
    ("pickapic_prompts.json", "*.parquet", "data/*.parquet"),
)


def _geneval(data_dir: Path | None) -> list[str]:
    return _unique(_read_published(_GENEVAL, data_dir))


def _pick_a_pic(data_dir: Path | None) -> list[str]:
    """From the list of prompts, else from the dataset's own files except the evaluation splits."""
    for folder in _folders(_PICK_A_PIC, data_dir):
        for pattern in _PICK_A_PIC.files:
            files = [p for p in sorted(folder.glob(pattern)) if not _is_evaluation(p)]
            if files:
                return _unique(prompt for file in files for prompt in read_file(file))
    raise _missing(_PICK_A_PIC, " or ".join(_PICK_A_PIC.files), data_dir)


def _is_evaluation(file: Path) -> bool:
    return not {"validation", "test"}.isdisjoint(re.split(r"[-_.]", file.name))


def _all(data_dir: Path | None) -> list[str]:
    """What the reference trains on, in its order."""
    prompts = _read_published(_T2I_COMPBENCH, data_dir) + _read_published(_ABC_6K, data_dir)
    return _unique(prompts + _pick_a_pic(data_dir))


def _read_published(published: _Published, data_dir: Path | None) -> list[str]:
    prompts = []
    for name in published.files:
        places = [folder / name for folder in _folders(published, data_dir)]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise _missing(published, name, data_dir)
        prompts += read_file(found)
    return prompts


def _folders(published: _Published, data_dir: Path | None) -> list[Path]:
    if data_dir is None:
        raise ValueError(
            f"data_dir is not set: give the folder that contains the prompts of {published.name}, "
            f"from {published.source}"
        )
    return [data_dir / folder for folder in published.folders]


def _missing(published: _Published, name: str, data_dir: Path | None) -> FileNotFoundError:
    folders = ", ".join(map(str, _folders(published, data_dir)))
    return FileNotFoundError(
        f"{published.name}'s {name} is missing; searched in {folders}. Download it from "
        f"{published.source}."
    )


NAMED_TASKS: dict[str, Callable[[Path | None], list[str]]] = {
    "example-prompts": lambda _: _unique(read_file(EXAMPLES)),
    "geneval": _geneval,
    "pickapic": _pick_a_pic,
    "all": _all,
    "tiny-world": lambda _: _tiny_world(False, TINY_WORLD_PER_CATEGORY),
    "tiny-world-held-out": lambda _: _tiny_world(True, TINY_WORLD_HELD_OUT_PER_CATEGORY),
}
"""Readers by task; those of published prompts take the data_dir."""
