"""Text from users: which strings are valid prompts, and how to print text to a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LONGEST_PROMPT = 200_000
"""In characters; no generator or reward reads more than a few hundred words."""

_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Control characters except tab and newline, surrogates, and characters that change text direction.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def printable(text: str) -> str:
    r"""The text with characters escaped (\x1b) that terminals obey or that cannot be written."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that each prompt is a string that tokenizers can read.

    Raises:
        ValueError: says which one is not, and why.
    """
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts must be a list with one prompt per image, not the string {prompts[:60]!r}"
        )
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is {prompt!r:.60}; a prompt must be a string")
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"prompt {i} has {len(prompt)} characters; shorten it to at most {LONGEST_PROMPT}"
            )
        if found := _SURROGATE.search(prompt):
            raise ValueError(
                f"prompt {i} contains {found[0]!r}, half of a character, at position "
                f"{found.start()}: remove it or type it again"
            )


def expect_long_texts(*tokenizers: Any) -> None:
    """Suppress the warning of transformers' tokenizers about "indexing errors" for long texts.

    Pipelines and rewards count the tokens of a text before truncating it, which causes the warning;
    networks only ever see the truncated text.
    """
    for tokenizer in tokenizers:
        # The tokenizer itself sets this after its first such warning.
        tokenizer.deprecation_warnings[_TOO_LONG] = True
