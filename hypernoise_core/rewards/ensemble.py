"""Several rewards combined: the weighted sum of their scores."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..errors import RewardError
from ..file_identity import identity_of
from .classes import get_reward
from .images import ImageBatch
from .reward import Reward, check_batch
from .weights import WeightStore

# Passed on unchanged, since callers check their type; older versions of torch have none.
_DEVICE_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


class RewardOutOfMemoryError(RewardError, torch.OutOfMemoryError):
    """A reward that ran out of memory; handlers of torch.OutOfMemoryError take it for one."""


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Around calls of a reward: any failure becomes a RewardError.

    Raises:
        RewardError: names the reward, the error and the line of code that raised it.
        RewardOutOfMemoryError: there was not enough memory.
    """
    try:
        yield
    except (RewardError, *_DEVICE_ERRORS):
        raise
    except torch.OutOfMemoryError as error:
        raise RewardOutOfMemoryError(name, f"ran out of memory: {error}") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            name,
            f"failed with {type(error).__name__}: {error} ({last.filename}, line {last.lineno})",
        ) from error


class Ensemble(nn.Module):
    """Rewards and their weights; what nodes, training, ReNO and evaluation score with.

    Args:
        members: by name, each with its weight.

    Raises:
        ValueError: there are no members.
    """

    def __init__(self, members: Mapping[str, tuple[Reward, float]]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one reward")
        self.weights = {name: float(weight) for name, (_, weight) in members.items()}
        self._members = nn.ModuleList(reward for reward, _ in members.values())

    @property
    def members(self) -> dict[str, Reward]:
        return dict(zip(self.weights, self._members, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if there are none."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def scores(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each reward's scores (B,) by name, differentiable in images.

        Images are preprocessed once for each way of doing it, and pass a CLIP that several rewards
        share once.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B prompts.

        Raises:
            ValueError: images and prompts do not fit each other, or an image cannot be scored.
            RewardError: a reward failed, or did not return one score for each image.
        """
        check_batch(images, prompts)
        batch = ImageBatch(images)
        scores = {}
        for name, reward in self.members.items():
            with _naming(name):
                scores[name] = _scores_of(name, reward, batch, prompts)
        return scores

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum (B,) of what `scores` gave."""
        return sum(weight * scores[name] for name, weight in self.weights.items())

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum of the scores (B,), differentiable in images."""
        return self.total(self.scores(images, prompts))

    def image_losses(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The paper's loss of each image, (B,), from what `scores` gave: the weighted sum of the
        rewards' own, which are their offset minus the score."""
        return sum(
            weight * (reward.loss_offset - scores[name])
            for (name, weight), reward in zip(self.weights.items(), self._members, strict=True)
        )

    def loss(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The paper's loss, a scalar: the mean over the images."""
        return self.image_losses(self.scores(images, prompts)).mean()

    def loss_gradient(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What `scores` gives, detached, and the gradient of the sum of `image_losses`.

        Each reward runs its own backward pass before the next one starts, so the activations of
        only one are kept.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B prompts.

        Returns:
            Scores (B,) by name, and the gradient in the images, (B, 3, H, W).

        Raises:
            ValueError, RewardError: as `scores` raises them.
        """
        check_batch(images, prompts)
        images = images.detach().requires_grad_(True)
        scores, gradient = {}, torch.zeros_like(images)
        for name, reward in self.members.items():
            with record_function(f"reward {name}"), _naming(name):
                score = _scores_of(name, reward, ImageBatch(images), prompts)
                (own,) = torch.autograd.grad(score.sum(), images)
                gradient -= self.weights[name] * own
            scores[name] = score.detach()
        return scores, gradient

    def prompt_warnings(self, prompts: Sequence[str]) -> list[str]:
        """One sentence for each reward and prompt that is longer than what the reward reads."""
        return [text for reward in self._members for text in reward.prompt_warnings(prompts)]

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory."""
        for reward in self._members:
            reward.checkpoint_activations()


def _scores_of(name: str, reward: Reward, batch: ImageBatch, prompts: Sequence[str]) -> Tensor:
    """The reward's scores, (B,).

    Raises:
        RewardError: they have another shape.
    """
    scores = reward.score_batch(batch, prompts)
    if scores.shape != (len(prompts),):
        raise RewardError(
            name,
            f"gave scores {tuple(scores.shape)} for {len(prompts)} images; it must give one "
            f"number for each, ({len(prompts)},)",
        )
    return scores


def load_rewards(
    weights: Mapping[str, float],
    folder: str | Path | Sequence[Path] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Ensemble:
    """Rewards by name and weight, frozen, on the CPU.

    Args:
        folder: of downloaded weights, or several; None: the Hugging Face cache.
        dtype: of the large networks.

    Raises:
        ValueError: there is no such reward, or a file is damaged.
        FileNotFoundError: a file is missing; says which and how to get it.
        ImportError: names the missing package and the command that installs it.
    """
    store = WeightStore(folder, dtype)
    members = {}
    # Nodes run in inference mode, whose tensors could not take part in a gradient later.
    with torch.inference_mode(False):
        for name, weight in weights.items():
            cls = get_reward(name)
            try:
                members[name] = (cls.load(store), weight)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{cls.title}: {error}. Run `hypernoise download rewards {name}` to get it."
                ) from error
    return Ensemble(members)


def reward_identities(names: Iterable[str], folder: str | Path | None = None) -> dict[str, str]:
    """An identity of each reward's weights, which change under the same name; see `identity_of`.

    Args:
        names: of rewards that `load_rewards` finds there.
        folder: of downloaded weights; None: the Hugging Face cache.

    Raises:
        FileNotFoundError, TensorFileError: as `load_rewards` raises them.
    """
    store = WeightStore(folder)
    return {name: identity_of(get_reward(name).paths(store)) for name in names}


@torch.no_grad()
def score_in_batches(
    rewards: Ensemble, images: Tensor, prompts: Sequence[str], *, batch_size: int = 16
) -> dict[str, Tensor]:
    """Each reward's scores (N,) by name, on the CPU and without gradient, for any number of images.

    If the device runs out of memory, the batch size is halved and the batch is retried.

    Args:
        images: (N, 3, H, W) in [0, 1], on any device.

    Raises:
        ValueError: images and prompts do not fit each other, or an image cannot be scored.
        RewardError: a reward failed.
        RewardOutOfMemoryError: there is not enough memory for one image.
    """
    check_batch(images, prompts)
    parts: list[dict[str, Tensor]] = []
    start = 0
    while start < len(images):
        rows = slice(start, start + batch_size)
        try:
            scores = rewards.scores(images[rows].to(rewards.device), prompts[rows])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        parts.append({name: values.cpu() for name, values in scores.items()})
        start += batch_size
    return {name: torch.cat([part[name] for part in parts]) for name in rewards.weights}
