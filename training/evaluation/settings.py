"""Settings of an evaluation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...hypernoise_core.reward_registry import parse_weights
from ..embedded_models import EMBEDDED, EMBEDDED_ADAPTER, default_rewards
from ..settings import PLACE

_TABLE_STEPS = (1, 2, 4, 8, 16, 32)
_ABLATION = re.compile(r"[\w.-]+=.+")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings of `hypernoise evaluate`.

    An interrupted evaluation continues where it stopped. To share the work between GPUs or
    processes, run: accelerate launch -m hypernoise.training.cli evaluate ...

    With --layout the images of a benchmark's prompts are written for its own evaluation instead;
    --data_dir is then a checkout of the benchmark.

    Raises:
        ValueError: a value is out of range, or a method lacks what it needs.
    """

    model: Annotated[str, PLACE] = "tiny-sprint"
    """Generator: tiny-sprint, sana, flux, sd-turbo, a diffusers folder, or a repository in the
    Hugging Face cache."""
    adapter: tuple[Path, ...] = ()
    """Noise hypernetworks, one per training seed; results are means over them. Default: the
    embedded one for tiny-sprint."""
    lora: tuple[Path, ...] = ()
    """LoRAs on the generator for the method finetune, from hypernoise train --train_type
    finetune."""
    ablation: tuple[str, ...] = ()
    """More hypernetworks or LoRAs as NAME=FILE, such as rank_8=FILE, for a table and a plot of
    their own."""
    methods: tuple[str, ...] = ()
    """Methods to compare: base, hypernoise, hypernoise_reno5, best_of_8, best_of_50, reno_50,
    finetune, prompt_optimisation. Default: all that can run; with --layout base, hypernoise and
    finetune."""
    steps: tuple[int, ...] = ()
    """Numbers of generator steps. Default: 1 2 4 8 16 32; with --layout 1."""
    slow_steps: tuple[int, ...] = (1,)
    """Numbers of generator steps at which best_of_50 and reno_50 run."""
    seeds: int = 4
    """Images per prompt, each from its own noise."""

    task: Annotated[str | None, PLACE] = None
    """Prompts, given as for hypernoise train. Default: held-out captions for tiny-sprint, otherwise
    example-prompts."""
    data_dir: Path | None = None
    """Folder of the published prompt files; with --layout the checkout of the benchmark."""
    prompt_column: str | None = None
    """Column or key that holds the prompts in a file or dataset."""
    per_category: int = 40
    """Held-out captions from each of the six categories of the tiny world."""
    max_prompts: int | None = None
    """Maximum number of prompts, spread evenly over the task."""
    search_prompts: int | None = None
    """Maximum number of prompts for methods that make several images per prompt."""
    multi_step_search_prompts: int | None = None
    """Maximum number of prompts for these methods beyond the smallest number of steps. Default:
    search_prompts."""
    prompt_command: str | None = None
    """Command that paraphrases prompts, for the method prompt_optimisation: it reads lines
    {"prompt": ...} and writes lines {"candidates": [...]}. Default: rules for captions of the tiny
    world."""

    rewards: str | None = None
    """Rewards to measure and search with, and their weights: hps=5,clip=0.01, or paper. Default:
    tiny-preference for tiny-sprint, otherwise paper."""
    rewards_folder: Path | None = None
    """Folder of downloaded reward weights. Default: the Hugging Face cache."""
    cache_dir: Path | None = None
    """Folder of downloaded models and encoded prompts."""
    image_size: int | None = None
    """Height and width of the images in pixels. Default: as in training."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Precision of the frozen networks. Default: float32 for tiny-sprint, otherwise bfloat16."""
    batch_size: int = 8
    """Images per forward pass in each process."""
    kl_noises: int = 4
    """Noises at which the KL divergence is estimated; 0 turns it off."""

    layout: Literal["geneval", "t2i-compbench", "dpg-bench"] | None = None
    """Write images in the folder layout of this benchmark instead of a report."""
    out: Path = Path("out/evaluation")
    """Output folder of the report."""

    def __post_init__(self) -> None:
        counts = ["seeds", "per_category", "batch_size", "image_size", "max_prompts"]
        for name in [*counts, "search_prompts", "multi_step_search_prompts"]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.kl_noises < 0:
            raise ValueError(f"kl_noises must not be negative, not {self.kl_noises}")
        if any(count < 1 for count in (*self.steps, *self.slow_steps)):
            raise ValueError(
                f"steps must be at least 1, got {self.steps} and slow_steps {self.slow_steps}"
            )
        _ = self.weights  # raises for rewards that cannot be used
        for name in self.methods:
            self._check_method(name)
        for text in self.ablation:
            if not _ABLATION.fullmatch(text):
                raise ValueError(f"ablation must be NAME=FILE, such as rank_8=FILE, not {text!r}")
        if self.layout and self.data_dir is None:
            raise ValueError(f"layout {self.layout} needs --data_dir, the benchmark's checkout")
        if not self.adapters and self.model not in EMBEDDED and not self.methods:
            raise ValueError(f"{self.model} has no default hypernetwork: give --adapter FILE")

    def _check_method(self, name: str) -> None:
        from .method_table import get_method

        needs = get_method(name).needs
        if needs == "adapter" and not self.adapters:
            raise ValueError(f"method {name} needs a hypernetwork: give --adapter FILE")
        if needs == "lora" and not self.lora:
            raise ValueError(f"method {name} needs a LoRA on the generator: give --lora FILE")

    @property
    def adapters(self) -> tuple[Path, ...]:
        """The hypernetworks; by default the embedded one for tiny-sprint."""
        return self.adapter or ((EMBEDDED_ADAPTER,) if self.model in EMBEDDED else ())

    @property
    def ablations(self) -> dict[str, Path]:
        """Adapters of the ablation by name."""
        parts = (text.partition("=") for text in self.ablation)
        return {name: Path(os.path.expanduser(file)) for name, _, file in parts}

    @property
    def chosen_steps(self) -> tuple[int, ...]:
        return self.steps or ((1,) if self.layout else _TABLE_STEPS)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward by name."""
        weights = parse_weights(self.reward_text)
        if zero := [name for name, weight in weights.items() if not weight]:
            raise ValueError(f"the weight of {zero[0]} must not be 0; leave the reward out instead")
        return weights

    @property
    def reward_text(self) -> str:
        return self.rewards or default_rewards(self.model)

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        return self.precision or ("float32" if self.model in EMBEDDED else "bfloat16")

    def chosen_methods(self, *, paraphrases: bool) -> tuple[str, ...]:
        """The methods to compare, in the order of the table; base is always included.

        Args:
            paraphrases: whether paraphrases of the prompts are available.

        Raises:
            ValueError: prompt_optimisation is requested without paraphrases.
        """
        from .method_table import BASE, METHODS

        there = {None}
        there |= {"adapter"} if self.adapters else set()
        there |= {"lora"} if self.lora else set()
        there |= {"paraphrases"} if paraphrases else set()
        if self.methods:
            if "prompt_optimisation" in self.methods and not paraphrases:
                raise ValueError(
                    "method prompt_optimisation needs paraphrases of the prompts: give "
                    "--prompt_command COMMAND"
                )
            compared = {*self.methods} | (set() if self.layout else {BASE})
            return tuple(name for name in METHODS if name in compared)
        return tuple(
            name
            for name, entry in METHODS.items()
            if entry.needs in there and not (self.layout and entry.searches)
        )
