"""A score that is measured during training but not trained on: if it falls, a reward is hacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ...hypernoise_core.rewards import (
    REWARDS,
    WeightStore,
    get_reward,
    load_rewards,
    score_in_batches,
)
from ..embedded_models import EMBEDDED
from ..tiny_world.captions import parse_caption
from ..tiny_world.checker import is_correct

CHECKER = "checker"
"""The tiny world's checker: 1 where an image shows exactly what its caption says, else 0."""
NONE = "none"
_PREFERRED = ("aesthetic", "pickscore", "imagereward", "clip", "hps")


@dataclass(frozen=True)
class Measure:
    """A score by name: images (N, 3, H, W) in [0, 1] and N prompts -> (N,) on the CPU, higher is
    better."""

    name: str
    score: Callable[[Tensor, Sequence[str]], Tensor]


def get_measure(
    name: str,
    rewards_folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Measure:
    """A reward, or the tiny world's checker, as a measure.

    Args:
        rewards_folder: of downloaded weights; None: the Hugging Face cache.
        dtype: of a reward's large networks.
        device: where the reward runs.

    Raises:
        ValueError: there is no such measure.
        FileNotFoundError: a reward's file is missing; says which and how to get it.
        ImportError: names the missing package and the command that installs it.
    """
    if name == CHECKER:
        return Measure(CHECKER, check)
    known = sorted(reward.name for reward in REWARDS)
    if name not in known:
        raise ValueError(
            f"unknown watch_reward {name!r}, choose from {', '.join([*known, CHECKER, NONE])}"
        )
    rewards = load_rewards({name: 1.0}, rewards_folder, dtype).to(device)
    return Measure(name, lambda images, prompts: score_in_batches(rewards, images, prompts)[name])


def check(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 for each image (N, 3, H, W) in [0, 1] that is what its caption says, else 0: (N,).

    Raises:
        ValueError: a prompt is not a caption of the tiny world.
    """
    captions = [parse_caption(prompt) for prompt in prompts]
    return torch.tensor(
        [float(is_correct(image, c)) for image, c in zip(images, captions, strict=True)]
    )


def default_watch(
    trained: Iterable[str],
    model: str,
    prompts: Sequence[str],
    rewards_folder: Path | None = None,
) -> str:
    """Name of an available measure that is not trained on; `none` with a message if there is none.

    Args:
        trained: names of the rewards that are trained on.
        model: the generator; an embedded one has the checker.
        prompts: what is evaluated; the checker reads captions of the tiny world alone.
        rewards_folder: of downloaded weights; None: the Hugging Face cache.

    Raises:
        TensorFileError: a reward's file is damaged.
    """
    if model in EMBEDDED and all(map(_is_caption, prompts)):
        return CHECKER
    store = WeightStore(rewards_folder)
    candidates = [name for name in _PREFERRED if name not in set(trained)]
    for name in candidates:
        if _is_here(name, store):
            return name
    PartialState().print(
        f"no reward is watched beside those in training, so reward hacking would go unnoticed: "
        f"download one with `hypernoise download rewards {candidates[0]}`"
        if candidates
        else "all rewards are trained on, so none is left to watch for reward hacking"
    )
    return NONE


def _is_caption(prompt: str) -> bool:
    try:
        parse_caption(prompt)
    except ValueError:
        return False
    return True


def _is_here(name: str, store: WeightStore) -> bool:
    try:
        for file in get_reward(name).files:
            store.find(file)
    except FileNotFoundError:
        return False
    return True


def hacking_warning(
    history: Sequence[Mapping[str, float]], *, watched: str, trained: str = "total"
) -> str | None:
    """A sentence where the trained score has risen at the cost of the watched one, else None.

    That is: the last gain in the trained score is above 0, and the watched gain is below 0 or below
    the best before it, each with 95% confidence.

    Args:
        history: the metrics of the evaluations so far, as `Evaluation.metrics` gives them, each
            with its `step`.
        watched: name of the measure that is not trained on.
        trained: name of a reward, or `total`, their weighted sum.
    """
    ours, theirs = f"evaluation/{trained}_gain", f"watched/{watched}_gain"
    history = [entry for entry in history if ours in entry and theirs in entry]
    if not history or not history[-1][f"{ours}_low"] > 0:
        return None
    last, best = history[-1], max(history, key=lambda entry: entry[theirs])
    below_base, below_best = last[f"{theirs}_high"] < 0, last[f"{theirs}_high"] < best[theirs]
    if not (below_base or below_best):
        return None
    fallen = "is below the base" if below_base else f"has fallen from {best[theirs]:+.4g}"
    stop = f", or stop at step {best['step']:.0f}, where {watched} was best"
    return (
        f"Reward hacking is likely: at step {last['step']:.0f} the gain over the base is "
        f"{_interval(last, ours)} in {trained}, which is trained on, while {watched}, which is "
        f"not, {fallen}: {_interval(last, theirs)}. Train less or with a larger --reg_weight"
        f"{stop * (best is not last)}."
    )


def _interval(entry: Mapping[str, float], name: str) -> str:
    low, high = entry[f"{name}_low"], entry[f"{name}_high"]
    return f"{entry[name]:+.4g} (95% confidence {low:+.4g} to {high:+.4g})"
