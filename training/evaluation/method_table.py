"""The methods that an evaluation compares, by name, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...hypernoise_core.families import Conditioning
from ...hypernoise_core.generator_lora import GeneratorLora
from ...hypernoise_core.hypernetwork import NoiseHypernetwork
from .methods import Method, base, best_of, finetune, hypernoise, prompt_optimisation, reno

BASE, OURS, RENO, FINETUNE = "base", "hypernoise", "reno_50", "finetune"


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """What methods are built from; None: not available."""

    hypernetwork: NoiseHypernetwork | None = None
    lora: GeneratorLora | None = None
    paraphrases: Mapping[str, Sequence[str]] | None = None
    encode: Callable[[Sequence[str]], Conditioning] | None = None


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """Facts about a method."""

    title: str
    """Its name in reports."""
    make: Callable[[MethodInputs], Method]
    passes: int
    """Approximate forward passes per generator step of an image; a backward pass counts as two.
    Jobs are distributed by it."""
    once: int = 0
    """Passes in addition to those of the steps."""
    needs: Literal["adapter", "lora", "paraphrases"] | None = None
    searches: bool = False
    """Whether it generates several images per prompt and chooses by the reward."""
    slow: bool = False
    """Whether it only runs at `slow_steps`."""
    candidates: int | None = None
    """N of best-of-N."""


METHODS: dict[str, MethodInfo] = {
    BASE: MethodInfo(title="base", make=lambda _: base, passes=1),
    OURS: MethodInfo(
        title="+ HyperNoise",
        make=lambda of: hypernoise(of.hypernetwork),
        passes=1,
        once=1,
        needs="adapter",
    ),
    "hypernoise_reno5": MethodInfo(
        title="+ HyperNoise + ReNO (5)",
        make=lambda of: reno(5, of.hypernetwork),
        passes=16,
        once=1,
        needs="adapter",
        searches=True,
    ),
    "best_of_8": MethodInfo(
        title="best of 8", make=lambda _: best_of(8), passes=8, searches=True, candidates=8
    ),
    "best_of_50": MethodInfo(
        title="best of 50",
        make=lambda _: best_of(50),
        passes=50,
        searches=True,
        slow=True,
        candidates=50,
    ),
    RENO: MethodInfo(
        title="ReNO (50)", make=lambda _: reno(50), passes=151, searches=True, slow=True
    ),
    FINETUNE: MethodInfo(
        title="LoRA fine-tune", make=lambda of: finetune(of.lora), passes=1, needs="lora"
    ),
    "prompt_optimisation": MethodInfo(
        title="prompt optimisation",
        make=lambda of: prompt_optimisation(of.paraphrases, of.encode),
        passes=4,
        needs="paraphrases",
        searches=True,
    ),
}


def get_method(name: str) -> MethodInfo:
    """The method of that name.

    Raises:
        ValueError: no method has that name; lists all of them.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}, choose from {', '.join(METHODS)}")
    return METHODS[name]
