"""Paraphrases of prompts for prompt optimisation: from a command of the user, or by rule."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence

from ...hypernoise_core.text_file import is_blank, lines
from ..tiny_world.captions import PREFIXES, parse_caption


def paraphrase(caption: str) -> list[str]:
    """A caption of the tiny world with each prefix that captions have; as given, it comes first.

    Raises:
        ValueError: it is not a caption of the tiny world.
    """
    text = parse_caption(caption).text
    bare = next(text.removeprefix(p) for p in PREFIXES[::-1] if text.startswith(p))
    return _with_itself(caption, [prefix + bare for prefix in PREFIXES])


def ask_command(command: str, prompts: Sequence[str]) -> dict[str, list[str]]:
    """Paraphrases of each prompt from a command, such as a script that calls a language model.

    The command reads a line of JSON for each prompt, {"prompt": "..."}, and writes a line for each,
    in the same order: {"candidates": ["...", ...]}.

    Args:
        command: with its arguments, split as by a shell, with ~ expanded; no shell runs it.

    Returns:
        Paraphrases by prompt, the prompt itself first.

    Raises:
        ValueError: the command fails, or its output has another form; says how.
    """
    requests = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    try:
        result = subprocess.run(
            [os.path.expanduser(word) for word in shlex.split(command)],
            input="\n".join(requests) + "\n",
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
    except OSError as error:
        raise ValueError(f"the prompt command {command!r} cannot be started: {error}") from error
    if result.returncode:
        raise ValueError(f"the prompt command {command!r} exited with code {result.returncode}")
    answers = [line for line in lines(result.stdout) if not is_blank(line)]
    if len(answers) != len(prompts):
        raise ValueError(
            f"the prompt command {command!r} wrote {len(answers)} lines for {len(prompts)} "
            f"prompts; it must write one line of JSON for each"
        )
    return {
        prompt: _with_itself(prompt, _candidates(command, number, line))
        for number, (prompt, line) in enumerate(zip(prompts, answers, strict=True), 1)
    }


def _candidates(command: str, number: int, line: str) -> list[str]:
    try:
        candidates = json.loads(line)["candidates"]
    except (ValueError, TypeError, LookupError, RecursionError):
        candidates = None
    if not isinstance(candidates, list) or not all(
        isinstance(text, str) and text.strip() for text in candidates
    ):
        raise ValueError(
            f"line {number} of the output of the prompt command {command!r} must look like "
            f'{{"candidates": ["a text", "another"]}}, not {line[:100]}'
        )
    return [text.strip() for text in candidates]


def _with_itself(prompt: str, candidates: Sequence[str]) -> list[str]:
    """The prompt and the candidates, each once."""
    return list(dict.fromkeys([prompt, *candidates]))
