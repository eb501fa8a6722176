"""GenEval (https://github.com/djghosh13/geneval)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...prompt_files import clean_prompt, json_lines
from .item import Item, find


def geneval_items(checkout: Path, images: int) -> list[Item]:
    """NNNNN/metadata.jsonl and NNNNN/samples/MMMM.png for each line of evaluation_metadata.jsonl.

    Args:
        checkout: of the benchmark, or the folder around it.
        images: of each prompt.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is not an object with a prompt, or the prompt is empty; names the line.
    """
    file = find(checkout, "prompts/evaluation_metadata.jsonl", "geneval")
    return [
        Item(
            _prompt_of(file, line, entry),
            tuple(f"{number:05d}/samples/{image:04d}.png" for image in range(images)),
            {f"{number:05d}/metadata.jsonl": text + "\n"},
        )
        for number, (line, text, entry) in enumerate(json_lines(file))
    ]


def _prompt_of(file: Path, line: int, entry: Any) -> str:
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError(f"{file}, line {line}: expected an object with the key prompt")
    prompt = clean_prompt(str(file), f"line {line}", entry["prompt"])
    if not prompt:
        raise ValueError(f"{file}, line {line}: the prompt is empty; remove the line")
    return prompt
