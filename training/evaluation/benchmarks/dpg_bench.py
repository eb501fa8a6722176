"""DPG-Bench (https://github.com/TencentQQGYLab/ELLA)."""

from __future__ import annotations

from pathlib import Path

from ...prompt_files import read_file
from .item import Item, find


def dpg_bench_items(checkout: Path, images: int) -> list[Item]:
    """NAME.png, a grid of 2 x 2 images or a single one, for each dpg_bench/prompts/NAME.txt.

    Args:
        checkout: of the benchmark, or the folder around it.
        images: of each prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither one nor four images of each prompt are asked for, or a file is empty.
    """
    if images not in (1, 4):
        raise ValueError(f"DPG-Bench takes 1 or 4 images of each prompt: --seeds 4, not {images}")
    folder = find(checkout, "prompts", "dpg_bench")
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .txt, the files with DPG-Bench's prompts")
    items = []
    for file in files:
        prompt = " ".join(read_file(file))
        if not prompt:
            raise ValueError(f"{file} has no prompt")
        items.append(Item(prompt, (f"{file.stem}.png",)))
    return items
