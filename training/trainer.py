"""Trains a noise hypernetwork on a frozen pipeline against rewards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..hypernoise_core.families import Conditioning, family_of_pipeline
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate
from ..hypernoise_core.rewards import Ensemble
from .config import TrainingConfig
from .loss import LossTerms, hypernoise_loss


@dataclass
class History:
    """One entry a step; `seconds` counts from the start of training."""

    reward: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Trainer:
    """A run: frozen pipeline, rewards and prompts in; a trained hypernetwork out.

    Args:
        pipeline: a diffusers pipeline of a known family.
        rewards: score images (B, 3, H, W) in [0, 1] against prompts.
        prompts: what is trained on.
        conditioning: of these prompts, a row each, as `encode_prompts` makes it.
        size: height and width of the images in pixels.
        base_model: what the pipeline was loaded from, for the adapter's metadata.

    Raises:
        ValueError: there are no prompts.
    """

    def __init__(
        self,
        pipeline: Any,
        rewards: Ensemble,
        prompts: Sequence[str],
        conditioning: Conditioning,
        config: TrainingConfig,
        *,
        size: tuple[int, int],
        base_model: str,
    ) -> None:
        if not prompts:
            raise ValueError("training needs at least one prompt")
        self.pipeline, self.rewards, self.config = pipeline, rewards, config
        self.family = family_of_pipeline(pipeline)
        self.network = self.family.network(pipeline)
        self.prompts = list(prompts)
        self.latent_shape = self.family.latent_shape(pipeline, *size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.hypernetwork = NoiseHypernetwork.initialise(
            self.network,
            self.family,
            rank=config.rank,
            alpha=config.alpha,
            generator=self.generator,
            base_model=base_model,
        )
        self.history = History()
        self._parameters = list(self.hypernetwork.parameters())
        # A gets no gradient while B is still 0: a long memory of squared gradients would be too
        # small at first, and the steps of A too large.
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._conditioning = conditioning

    def run(self) -> NoiseHypernetwork:
        """Trains to the last step, or to the time limit, under a progress bar."""
        start, step, progress = time.monotonic(), 0, 0.0
        with tqdm(total=self.config.steps, desc="training", unit="step") as bar:
            while progress < 1:
                self._set_learning_rate(step, progress)
                terms, grad_norm = self._step()
                step += 1
                elapsed = time.monotonic() - start
                progress = self._progress(step, elapsed)
                self._record(terms, grad_norm, elapsed)
                bar.update()
                bar.set_postfix_str(
                    f"reward {terms.reward.mean():.2f}, |f|^2 {terms.penalty:.3f}, "
                    f"{step * self.config.batch_size / elapsed:.0f} images/s"
                )
        self.hypernetwork.metadata = replace(
            self.hypernetwork.metadata, training_steps=step, rewards=self.rewards.weights
        )
        return self.hypernetwork

    def _progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is over, in steps or in seconds, whichever is more."""
        limit = self.config.max_seconds
        return max(step / self.config.steps, elapsed / limit if limit else 0.0)

    def _set_learning_rate(self, step: int, progress: float) -> None:
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup * max(0.02, 1 - progress)

    def _step(self) -> tuple[LossTerms, float]:
        batch = self.config.batch_size
        chosen = torch.randint(len(self.prompts), (batch,), generator=self.generator)
        noise = torch.randn(batch, *self.latent_shape, generator=self.generator)
        conditioning = {key: value[chosen] for key, value in self._conditioning.items()}
        delta = self.hypernetwork(self.network, noise, conditioning)
        modulated = modulate(noise, delta)
        modulated.register_hook(self._clip_images)  # on the reward's gradient alone
        images = self._generate(modulated, conditioning)
        reward = self.rewards.score(images, [self.prompts[i] for i in chosen])
        terms = hypernoise_loss(delta, reward, self.config.penalty_weight)
        self._optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self._optimizer.step()
        return terms, float(norm)

    def _clip_images(self, gradient: Tensor) -> Tensor:
        return clip_images(gradient, self.config.image_grad_quantile)

    def _generate(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], by one step of the frozen generator."""
        latents = self.family.denoise(self.pipeline, noise, conditioning, 1)
        return self.family.decode(self.pipeline, latents)

    def _record(self, terms: LossTerms, grad_norm: float, seconds: float) -> None:
        self.history.reward.append(float(terms.reward.mean()))
        self.history.penalty.append(float(terms.penalty))
        self.history.grad_norm.append(grad_norm)
        self.history.seconds.append(seconds)


def clip_images(gradient: Tensor, quantile: float) -> Tensor:
    """Scales down the images (B, C, H, W) whose L2 norm is above that quantile of the B norms."""
    norms = gradient.flatten(1).norm(dim=1)
    factors = (norms.quantile(quantile) / norms.clamp(min=1e-12)).clamp(max=1)
    return gradient * factors.view(-1, 1, 1, 1)
