"""Text from users: which strings are valid prompts, and how text is shown on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

LONGEST_PROMPT = 200_000
"""In characters; no generator or reward reads more than some hundred words."""

_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Control characters but tab and line break, surrogates, and those that turn the direction of text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def printable(text: str) -> str:
    r"""The text with characters escaped, as in \x1b, that terminals obey or no file can hold."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def check_prompts(prompts: Sequence[str]) -> None:
    """Makes sure that each is a text that tokenizers read.

    Raises:
        ValueError: says which is none, and why.
    """
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts must be a list with one prompt for each image, got the string "
            f"{prompts[:60]!r}"
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
                f"prompt {i} holds {found[0]!r}, half of a character, at position "
                f"{found.start()}: take it out or type it anew"
            )


def expect_long_texts(*tokenizers: Any) -> None:
    """Keeps tokenizers of transformers from warning of "indexing errors" at a long text.

    They do so where a text is counted before it is cut off, which is what pipelines and rewards do;
    no network gets to see the whole.
    """
    for tokenizer in tokenizers:
        # The tokenizer sets this itself after its first such warning.
        tokenizer.deprecation_warnings[_TOO_LONG] = True
