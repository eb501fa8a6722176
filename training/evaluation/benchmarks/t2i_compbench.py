"""T2I-CompBench (https://github.com/Karine-Huang/T2I-CompBench)."""

from __future__ import annotations

from pathlib import Path

from ...prompt_files import read_file
from .item import Item, find

_LONGEST_NAME = 255  # bytes of a file's name


def t2i_compbench_items(checkout: Path, images: int) -> list[Item]:
    """CATEGORY_val/samples/PROMPT_NNNNNN.png for each line of examples/dataset/CATEGORY_val.txt.

    Args:
        checkout: of the benchmark, or the folder around it.
        images: of each prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a prompt cannot be part of a file name.
    """
    folder = find(checkout, "examples/dataset", "T2I-CompBench")
    files = sorted(folder.glob("*_val.txt"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no *_val.txt, the files with T2I-CompBench's evaluation prompts"
        )
    items = []
    for file in files:
        for line, text in enumerate(read_file(file)):
            prompt = text.split("\t")[0]
            numbers = range(line * images, (line + 1) * images)
            names = tuple(f"{file.stem}/samples/{prompt}_{number:06d}.png" for number in numbers)
            if "/" in prompt or len(Path(names[0]).name.encode()) > _LONGEST_NAME:
                raise ValueError(f"{file}: the prompt {prompt!r} cannot be part of a file name")
            items.append(Item(prompt, names))
    return items
