"""The prompts of an evaluation, their meanings, and paraphrases of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.strict_json import parse_object
from ...hypernoise_core.text_file import read_text
from ..embedded_models import EMBEDDED
from ..prompts import load_prompts, spread, tiny_world_captions
from ..report.page import REPORTS
from ..tiny_world.captions import Caption, parse_caption
from ..writable import check_others
from .jobs import FOLDER as JOBS
from .paraphrases import ask_command, paraphrase
from .settings import EvaluationConfig

PROMPTS = "prompts.json"
"""Lists the prompts in the evaluation's folder, for readers; nothing reads it back."""
_PARAPHRASES = "wordings.json"  # named so by earlier versions, whose evaluations can be resumed


@dataclass(frozen=True)
class Paraphrases:
    """Paraphrases of each prompt, the prompt itself first, and the time it took to get them."""

    by_prompt: Mapping[str, Sequence[str]]
    seconds_per_prompt: float


@dataclass(frozen=True)
class EvalPrompts:
    """The prompts that all methods generate images of."""

    prompts: list[str]
    captions: list[Caption] | None
    """Their meanings, if all are captions of the tiny world."""
    paraphrases: Paraphrases | None
    """For prompt optimisation; None if it is not evaluated."""

    def texts(self) -> list[str]:
        """All texts to encode, each once."""
        paraphrases = self.paraphrases.by_prompt.values() if self.paraphrases else ()
        return list(dict.fromkeys([*self.prompts, *(t for texts in paraphrases for t in texts)]))


def load_eval_prompts(config: EvaluationConfig, accelerator: Accelerator) -> EvalPrompts:
    """Loads the prompts and gets their paraphrases; writes both to the evaluation's folder.

    Raises:
        FileNotFoundError, ValueError: as `load_prompts` and `ask_command` raise them.
        FileExistsError: the folder is not an evaluation's and holds files it would replace.
    """
    prompts = select_prompts(config)
    file, content = config.out / PROMPTS, json.dumps(prompts, indent=1).encode()
    if not ((config.out / JOBS).is_dir() or (file.is_file() and file.read_bytes() == content)):
        check_others(config.out, "--out", (PROMPTS, _PARAPHRASES, *REPORTS))
    try:
        captions = [parse_caption(prompt) for prompt in prompts]
    except ValueError:
        captions = None
    can_paraphrase = config.prompt_command is not None or captions is not None
    methods = config.chosen_methods(paraphrases=can_paraphrase)
    if accelerator.is_main_process:
        write_atomically(file, content)
    paraphrases = None
    if "prompt_optimisation" in methods:
        searched = spread(prompts, config.search_prompts)
        paraphrases = load_paraphrases(config.prompt_command, searched, config.out, accelerator)
    accelerator.wait_for_everyone()
    return EvalPrompts(prompts, captions, paraphrases)


def select_prompts(config: EvaluationConfig) -> list[str]:
    """The prompts of the task, or `max_prompts` of them, evenly spaced."""
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


def load_paraphrases(
    command: str | None, prompts: Sequence[str], folder: Path, accelerator: Accelerator
) -> Paraphrases:
    """Paraphrases from an earlier run in the folder; otherwise the main process gets them.

    Args:
        command: as of `ask_command`; None: by rule, for captions of the tiny world.

    Raises:
        ValueError: as `ask_command` raises it.
    """
    file = folder / _PARAPHRASES
    unique = list(dict.fromkeys(prompts))
    if accelerator.is_main_process and not _holds(file, command, unique):
        start = time.perf_counter()
        if command is None:
            by_prompt = {prompt: paraphrase(prompt) for prompt in unique}
        else:
            by_prompt = ask_command(command, unique)
        seconds = (time.perf_counter() - start) / len(unique)
        content = {"command": command, "seconds_per_prompt": seconds, "wordings": by_prompt}
        write_atomically(file, json.dumps(content, indent=1).encode())
    accelerator.wait_for_everyone()
    content = parse_object(read_text(file))
    return Paraphrases(content["wordings"], content["seconds_per_prompt"])


def _holds(file: Path, command: str | None, prompts: Sequence[str]) -> bool:
    if not file.is_file():
        return False
    content = parse_object(read_text(file))
    return content["command"] == command and set(prompts) <= set(content["wordings"])
