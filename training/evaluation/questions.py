"""The prompts of an evaluation, what they mean, and other wordings of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..embedded import EMBEDDED
from ..prompts import load_prompts, spread, tiny_world_captions
from ..report.page import REPORTS
from ..tiny_world.captions import Caption, parse_caption
from ..writable import check_others
from .cells import FOLDER as CELLS
from .settings import EvaluationConfig
from .wordings import ask_command, paraphrase

PROMPTS = "prompts.json"
"""The file in the evaluation's folder that holds them."""
_WORDINGS = "wordings.json"


@dataclass(frozen=True)
class Wordings:
    """Other wordings of each prompt, the prompt itself first, and what they took to make."""

    by_prompt: dict[str, list[str]]
    seconds_per_prompt: float


@dataclass(frozen=True)
class Questions:
    """What is asked of the generator."""

    prompts: list[str]
    captions: list[Caption] | None
    """Their meanings, where all are captions of the tiny world."""
    wordings: Wordings | None

    def texts(self) -> list[str]:
        """All other wordings."""
        wordings = self.wordings.by_prompt.values() if self.wordings else ()
        return list(dict.fromkeys(text for texts in wordings for text in texts))


def ask(config: EvaluationConfig, accelerator: Accelerator) -> Questions:
    """The prompts, what they mean, and other wordings of them; written into the folder.

    Raises:
        FileNotFoundError, ValueError: as `load_prompts` and `ask_command` raise them.
        FileExistsError: the folder is of no evaluation and holds what one would replace.
    """
    prompts = choose_prompts(config)
    file, content = config.out / PROMPTS, json.dumps(prompts, indent=1).encode()
    if not ((config.out / CELLS).is_dir() or (file.is_file() and file.read_bytes() == content)):
        check_others(config.out, "--out", (PROMPTS, _WORDINGS, *REPORTS))
    try:
        captions = [parse_caption(prompt) for prompt in prompts]
    except ValueError:
        captions = None
    can_reword = config.prompt_command is not None or captions is not None
    methods = config.chosen_methods(wordings=can_reword)
    if accelerator.is_main_process:
        write_atomically(file, content)
    wordings = None
    if "prompt_optimisation" in methods:
        wordings = _wordings(config, spread(prompts, config.search_prompts), accelerator)
    accelerator.wait_for_everyone()
    return Questions(prompts, captions, wordings)


def choose_prompts(config: EvaluationConfig) -> list[str]:
    """The prompts of the task, or as many as asked for, at equal distances."""
    if config.task is None and config.model in EMBEDDED:
        captions = tiny_world_captions(held_out=True, per_category=config.per_category)
        prompts = [caption.text for caption in captions]
    else:
        prompts = load_prompts(
            config.task or "example-prompts",
            data_dir=config.data_dir,
            column=config.prompt_column,
        )
    return spread(prompts, config.max_prompts)


def _wordings(
    config: EvaluationConfig, prompts: Sequence[str], accelerator: Accelerator
) -> Wordings:
    """From the folder, else the main process gets them."""
    file = config.out / _WORDINGS
    unique = list(dict.fromkeys(prompts))
    if accelerator.is_main_process and not _holds(file, config.prompt_command, unique):
        start = time.perf_counter()
        if config.prompt_command is None:
            by_prompt = {prompt: paraphrase(prompt) for prompt in unique}
        else:
            by_prompt = ask_command(config.prompt_command, unique)
        seconds = (time.perf_counter() - start) / len(unique)
        content = {
            "command": config.prompt_command,
            "seconds_per_prompt": seconds,
            "wordings": by_prompt,
        }
        write_atomically(file, json.dumps(content, indent=1).encode())
    accelerator.wait_for_everyone()
    content = parse_object(read_text(file))
    return Wordings(content["wordings"], content["seconds_per_prompt"])


def _holds(file: Path, command: str | None, prompts: Sequence[str]) -> bool:
    if not file.is_file():
        return False
    content = parse_object(read_text(file))
    return content["command"] == command and set(prompts) <= set(content["wordings"])
