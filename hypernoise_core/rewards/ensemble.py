"""Several rewards as one: the weighted sum of their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..file_identity import identity_of
from .images import ImageBatch
from .registry import get_reward
from .reward import Reward, check_batch
from .weights import WeightStore


class Ensemble(nn.Module):
    """Rewards and their weights; what nodes, training, ReNO and evaluation score with.

    Args:
        members: by name, each with its weight.

    Raises:
        ValueError: there is no member.
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
        """
        check_batch(images, prompts)
        batch = ImageBatch(images)
        return {name: reward.score_batch(batch, prompts) for name, reward in self.members.items()}

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

        The rewards take turns, each with a backward pass of its own, so that no more than the
        activations of one are kept.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B prompts.

        Returns:
            Scores (B,) by name, and the gradient in the images, (B, 3, H, W).

        Raises:
            ValueError: as `scores` raises it.
        """
        check_batch(images, prompts)
        images = images.detach().requires_grad_(True)
        scores, gradient = {}, torch.zeros_like(images)
        for name, reward in self.members.items():
            with record_function(f"reward {name}"):
                score = reward.score_batch(ImageBatch(images), prompts)
                (own,) = torch.autograd.grad(score.sum(), images)
                gradient -= self.weights[name] * own
            scores[name] = score.detach()
        return scores, gradient

    def complaints(self, prompts: Sequence[str]) -> list[str]:
        """One sentence for each reward and prompt that is longer than what the reward reads."""
        return [text for reward in self._members for text in reward.complaints(prompts)]

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory."""
        for reward in self._members:
            reward.checkpoint_activations()


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
                    f"{cls.title}: {error}. `hypernoise download rewards {name}` gets it."
                ) from error
    return Ensemble(members)


def reward_identities(names: Iterable[str], folder: str | Path | None = None) -> dict[str, str]:
    """What tells each reward's weights from others under its name, see `identity_of`.

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

    Where the device has not enough memory for a batch, it goes on with half as many at a time.

    Args:
        images: (N, 3, H, W) in [0, 1], on any device.

    Raises:
        ValueError: images and prompts do not fit each other, or an image cannot be scored.
        torch.OutOfMemoryError: there is not enough memory for one image.
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
