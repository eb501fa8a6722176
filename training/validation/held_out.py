"""Evaluation in training: the adapter against the plain generator, on prompts not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from scipy.stats import bootstrap
from torch import Tensor

from ...hypernoise_core.families import Conditioning, Family, family_of_pipeline
from ...hypernoise_core.generate import Generated, generate
from ...hypernoise_core.generator_lora import GeneratorLora
from ...hypernoise_core.hypernetwork import NoiseHypernetwork, modulate, noise_penalty
from ...hypernoise_core.rewards import Ensemble, compare, score_in_batches
from ..report.figures import side_by_side
from .watch import Measure

FOLDER = "evaluations"
"""Where a run's folder keeps the pictures of its evaluations."""
SHOWN = 8
"""Prompts in a picture at most."""
PICTURES = {
    "images": "Same prompt, same noise",
    "noise": "Noise x, f(x) and the modulated noise, decoded for a look",
}
"""Titles of the pictures by the end of their files' names."""

_F_SQUARED, _REPLACED = "evaluation/f_squared", "evaluation/total_noise_prompt_replaced"


@dataclass(frozen=True)
class Gain:
    """A score of the adapter's images against the base's, pair by pair."""

    base: float
    """Mean of the base."""
    ours: float
    """Mean with the adapter."""
    mean: float
    """Mean difference."""
    low: float
    """Lower end of its 95% confidence interval; NaN where it is unknown."""
    high: float
    win_rate: float
    """Share of images that score higher than the base's; a tie counts half."""


def paired_gain(base: Tensor, ours: Tensor) -> Gain:
    """Compares scores (N,) of N pairs; the interval is the percentile bootstrap's.

    It is unknown for a single pair and where a score is not finite.
    """
    low = high = float("nan")
    difference = (ours.double() - base.double()).numpy()
    if len(difference) > 1 and np.isfinite(difference).all():
        # The percentiles also hold for differences that are all the same, as those of f = 0 are.
        result = bootstrap((difference,), np.mean, method="percentile", random_state=0)
        low, high = map(float, result.confidence_interval)
    win_rate = compare(base, ours).win_rate
    mean = float(difference.mean())
    return Gain(float(base.mean()), float(ours.mean()), mean, low, high, win_rate)


@dataclass(frozen=True)
class Evaluation:
    """What an adapter is worth on the held-out prompts."""

    gains: dict[str, Gain]
    """By metric: evaluation/REWARD, evaluation/total, watched/MEASURE."""
    f_squared: float | None
    """Mean f^2 of an element of the noise; None for a LoRA on the generator."""
    noise_prompt_replaced: float | None
    """Mean total where the hypernetwork gets another prompt; None for a LoRA."""
    prompts: list[str]
    """Of the images that are kept to be shown."""
    rows: dict[str, Tensor]
    """These images, (K, 3, H, W) in [0, 1], by what made them."""
    noise_rows: dict[str, Tensor]
    """Decoded noise, (K, 3, H, W) in [0, 1]; empty where it was not asked for."""

    def metrics(self) -> dict[str, float]:
        """All numbers under flat names.

        For each score NAME (mean with the adapter), NAME_base, NAME_gain, NAME_gain_low,
        NAME_gain_high and NAME_win_rate. For a hypernetwork also evaluation/f_squared and
        evaluation/total_noise_prompt_replaced.
        """
        numbers = {}
        for name, gain in self.gains.items():
            numbers[name] = gain.ours
            numbers[f"{name}_base"] = gain.base
            numbers[f"{name}_gain"] = gain.mean
            numbers[f"{name}_gain_low"] = gain.low
            numbers[f"{name}_gain_high"] = gain.high
            numbers[f"{name}_win_rate"] = gain.win_rate
        if self.f_squared is not None:
            numbers[_F_SQUARED] = self.f_squared
        if self.noise_prompt_replaced is not None:
            numbers[_REPLACED] = self.noise_prompt_replaced
        return numbers

    def write_pictures(self, folder: Path, step: int) -> dict[str, Path]:
        """Writes the grid of images, and that of decoded noise if there is one, into a folder.

        Returns:
            The files by title, see `pictures_of`.
        """
        grids = {"images": self.rows, "noise": self.noise_rows}
        for name, rows in grids.items():
            if rows:
                side = next(iter(rows.values())).shape[-1]
                dpi = min(190, max(110, round(side / 1.35)))
                side_by_side(_picture_file(folder, step, name), self.prompts, rows, dpi=dpi)
        return pictures_of(folder, step)


def pictures_of(folder: Path, step: int) -> dict[str, Path]:
    """The pictures that a folder holds of the evaluation after so many updates, by title."""
    files = {title: _picture_file(folder, step, name) for name, title in PICTURES.items()}
    return {title: path for title, path in files.items() if path.is_file()}


def _picture_file(folder: Path, step: int, name: str) -> Path:
    return folder / f"step_{step:09d}_{name}.jpg"


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Prompts and noises on which adapters are measured, always the same ones.

    Raises:
        ValueError: there is no prompt, or not one seed for each.
    """

    pipeline: Any
    """A diffusers pipeline of a known family."""
    prompts: Sequence[str]
    conditioning: Conditioning
    """A row for each prompt, on the CPU."""
    noise_conditioning: Conditioning
    """One row, given to the hypernetwork instead, to measure what it takes from the prompt."""
    seeds: Sequence[int]
    """One for each prompt."""
    size: tuple[int, int]
    """Height and width of the images in pixels."""
    rewards: Ensemble
    """What is trained on."""
    watched: Measure | None = None
    """What is not trained on."""
    batch_size: int = 8
    """Images of this process at a time."""
    viz_noise: bool = False
    """Also decode noise, f and their sum."""

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.seeds):
            raise ValueError(
                f"an evaluation takes prompts and a seed for each, got {len(self.prompts)} prompts "
                f"and {len(self.seeds)} seeds"
            )

    def measure(self, adapter: NoiseHypernetwork | GeneratorLora) -> Evaluation:
        """Images with the adapter against those of the plain generator.

        All processes call this together: each makes a share of the images, and all get the result.
        torch's global random state stays as it is.

        Args:
            adapter: on the pipeline's device.
        """
        if isinstance(adapter, GeneratorLora):
            with adapter.attached(self._family.network(self.pipeline)):
                images = self._generate(None).images
            return self._evaluation(self._scores(images), {adapter.kind: images}, {})
        made = self._generate(adapter)
        replaced = self._generate(adapter, self.noise_conditioning).images
        scores = self._scores(made.images) | {
            _F_SQUARED: noise_penalty(made.output),
            _REPLACED: self._reward_scores(replaced)["evaluation/total"],
        }
        rows = {"modulated noise": made.images, "noise prompt replaced": replaced}
        modulated = modulate(made.noise, made.delta)
        noises = {"noise x": made.noise, "f(x)": made.output, "modulated noise": modulated}
        return self._evaluation(scores, rows, noises if self.viz_noise else {})

    @cached_property
    def _family(self) -> Family:
        return family_of_pipeline(self.pipeline)

    @cached_property
    def _own(self) -> list[int]:
        """Which prompts this process takes.

        As many in each process, so that a generator that is spread over them runs equally often in
        all; where that does not come out even, some prompts have two processes.
        """
        state, count = PartialState(), len(self.prompts)
        slots = -(-count // state.num_processes) * state.num_processes
        return [slot % count for slot in range(state.process_index, slots, state.num_processes)]

    @cached_property
    def _base(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The plain generator's scores by metric, (N,), and the images that are shown."""
        images = self._generate(None).images
        return self._gathered(self._scores(images), {"base": _as_bytes(images)})

    def _generate(
        self,
        hypernetwork: NoiseHypernetwork | None,
        noise_conditioning: Conditioning | None = None,
    ) -> Generated:
        """One image for each of this process's prompts."""
        return generate(
            self.pipeline,
            self._own_prompts,
            hypernetwork,
            seeds=[self.seeds[i] for i in self._own],
            height=self.size[0],
            width=self.size[1],
            batch_size=self.batch_size,
            conditioning={name: rows[self._own] for name, rows in self.conditioning.items()},
            noise_conditioning=noise_conditioning,
        )

    @property
    def _own_prompts(self) -> list[str]:
        return [self.prompts[i] for i in self._own]

    def _scores(self, images: Tensor) -> dict[str, Tensor]:
        """All scores of this process's images by metric, (n,) each."""
        scores = self._reward_scores(images)
        if self.watched is not None:
            numbers, bad = _as_numbers(images)
            watched = self.watched.score(numbers, self._own_prompts)
            scores[f"watched/{self.watched.name}"] = watched.masked_fill(bad, torch.nan)
        return scores

    def _reward_scores(self, images: Tensor) -> dict[str, Tensor]:
        numbers, bad = _as_numbers(images)
        scores = score_in_batches(
            self.rewards, numbers, self._own_prompts, batch_size=self.batch_size
        )
        scores = {name: values.masked_fill(bad, torch.nan) for name, values in scores.items()}
        named = {f"evaluation/{name}": values for name, values in scores.items()}
        return named | {"evaluation/total": self.rewards.total(scores)}

    def _evaluation(
        self, scores: dict[str, Tensor], rows: dict[str, Tensor], noises: dict[str, Tensor]
    ) -> Evaluation:
        """The result for this process's scores (n,), images (n, 3, H, W) and noises, together with
        those of all others."""
        base_scores, base_images = self._base
        pictures = {name: _as_bytes(images) for name, images in rows.items()}
        scores, pictures = self._gathered(scores, pictures)
        _, noises = self._gathered({}, noises)
        return Evaluation(
            gains={name: paired_gain(base, scores[name]) for name, base in base_scores.items()},
            f_squared=_mean(scores, _F_SQUARED),
            noise_prompt_replaced=_mean(scores, _REPLACED),
            prompts=list(self.prompts[:SHOWN]),
            rows={name: t.float() / 255 for name, t in (base_images | pictures).items()},
            noise_rows={name: self._decoded(latents) for name, latents in noises.items()},
        )

    def _gathered(
        self, values: dict[str, Tensor], shown: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows of all processes in the order of the prompts; of `shown` the first ones alone."""
        own = torch.tensor(self._own)
        first = own < SHOWN
        shares = [(own, values), (own[first], {name: t[first] for name, t in shown.items()})]
        shares = gather_object(shares)  # two of each process
        return _in_order(shares[0::2]), _in_order(shares[1::2])

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> Tensor:
        """What the decoder makes of noise (K, C, H, W): (K, 3, height, width) in [0, 1]."""
        device = self.pipeline._execution_device
        batches = latents.to(device).split(self.batch_size)
        return torch.cat([self._family.decode(self.pipeline, batch).cpu() for batch in batches])


def _in_order(shares: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Joins tensors whose rows have numbers, one row of each number."""
    numbers = torch.cat([numbers for numbers, _ in shares]).tolist()
    row = {number: i for i, number in enumerate(numbers)}
    order = [row[number] for number in sorted(row)]
    return {name: torch.cat([v[name] for _, v in shares])[order] for name in shares[0][1]}


def _as_numbers(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images with grey ones in the place of those that are no numbers, as half precision overflows
    and which nothing could score; and which these are, (B,) on the CPU."""
    bad = ~torch.isfinite(images).all(3).all(2).all(1)
    return torch.where(bad.view(-1, 1, 1, 1), 0.5, images), bad.cpu()


def _as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().byte()


def _mean(scores: dict[str, Tensor], name: str) -> float | None:
    return float(scores[name].mean()) if name in scores else None
