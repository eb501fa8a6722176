"""Trains a noise hypernetwork on a frozen pipeline against rewards; or, to compare, the generator.

Each update sums the gradients of its images over batches and processes, and divides by their
number: so uneven batches and batches that were left out change nothing but the number. The parts of
an update have names in torch's profiler: hypernetwork, generator, decode, reward NAME, backward,
optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function

from ..hypernoise_core.adapter import load_adapter
from ..hypernoise_core.families import Conditioning, Family, family_of_pipeline
from ..hypernoise_core.generator_lora import GeneratorLora
from ..hypernoise_core.hypernetwork import NoiseHypernetwork, modulate, predict_change
from ..hypernoise_core.rewards import Ensemble
from .batches import Batch, BatchPlan
from .config import TrainingConfig
from .loss import regulariser
from .optimization import learning_rate, make_average, make_optimizer, share_done
from .processes import join

MAX_SKIPPED = 50
"""Updates without a usable gradient, one after the other, that end a run."""

Adapter = NoiseHypernetwork | GeneratorLora
Metrics = dict[str, float]


class Features(Protocol):
    """Encoded prompts."""

    def rows(self, prompts: Sequence[str]) -> Conditioning:
        """A row for each prompt."""


@dataclass(frozen=True)
class Terms:
    """What one batch gave: the loss of each image, (B,), and what it is made of, detached."""

    loss: Tensor
    scores: dict[str, Tensor]
    penalty: Tensor
    norm: Tensor


class Trainer:
    """A run: frozen pipeline, rewards and prompts in; a trained adapter out.

    Args:
        pipeline: a diffusers pipeline of a known family, on the device of the accelerator.
        rewards: score images (B, 3, H, W) in [0, 1] against prompts; on the same device.
        prompts: what is trained on.
        features: the encoded prompts.
        size: height and width of the images in pixels.
        base_model: what the pipeline was loaded from, for the adapter's metadata.
        accelerator: of this process; None: a new one.

    Raises:
        ValueError: there are no prompts, or a setting does not fit the pipeline.
        AdapterError: `init_adapter` cannot be read or does not fit.
    """

    def __init__(
        self,
        pipeline: Any,
        rewards: Ensemble,
        prompts: Sequence[str],
        features: Features,
        config: TrainingConfig,
        *,
        size: tuple[int, int],
        base_model: str,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.pipeline, self.rewards, self.features = pipeline, rewards, features
        self.config = config
        self.accelerator = accelerator or join()
        self.family = family_of_pipeline(pipeline)
        self.network = self.family.network(pipeline)
        self.plan = BatchPlan(prompts, config)
        self.latent_shape = self.family.latent_shape(pipeline, *size)
        adapter = make_adapter(self.network, self.family, config, base_model)
        self.adapter: Adapter = adapter.to(self.accelerator.device)
        self._average = make_average(self.adapter, config.ema_decay)
        self._parameters = list(self.adapter.parameters())
        self._optimizer = make_optimizer(self._parameters, config)
        self.step = 0
        """Updates done."""
        self.skipped = 0
        """Batches left out because their loss was no number, and updates without a gradient."""
        self._skipped_in_a_row = 0
        self._no_numbers: set[str] = set()  # what was none: images, scores of a reward
        self.is_whole = True
        """Whether the state is that after `step` complete updates."""
        self._seconds_before = 0.0  # of a resumed run, so far
        self._stop = False

    @property
    def trained(self) -> Adapter:
        """The adapter as it is to be used now: the moving average where there is one."""
        adapter = self._average.module if self._average is not None else self.adapter
        adapter.metadata = replace(
            adapter.metadata, training_steps=self.step, rewards=self.rewards.weights
        )
        return adapter

    def run(self) -> Adapter:
        """Trains to the end of the run."""
        for _ in self.updates():
            pass
        return self.trained

    def stop(self) -> None:
        """End the run after the current update, in all processes."""
        self._stop = True

    def updates(self) -> Iterator[Metrics]:
        """Train, and yield the metrics of each update, which are the same in every process.

        Means over the update's images: `loss`, each reward's name, `reward` (their weighted sum),
        `penalty` and `norm` (of the modulated noise). Also `grad_norm` before clipping, `lr`,
        `images`, `seconds` since the start and `skipped` so far.

        Raises:
            ValueError: many updates in a row gave no usable gradient.
            RewardError: a reward failed.
        """
        start = time.monotonic() - self._seconds_before
        progress = self._progress(self._seconds_before)
        while progress < 1:
            self._check_skipped()
            lr = learning_rate(self.config, self.step, progress)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            metrics = self._update()
            self.step += 1
            self.is_whole = True
            elapsed = self._agree(time.monotonic() - start)
            self._seconds_before = elapsed
            progress = self._progress(elapsed)
            stop = metrics.pop("stop")
            yield metrics | {"lr": lr, "seconds": elapsed, "skipped": self.skipped}
            if stop:
                return
        self._check_skipped()

    def learning_rate_if_planned(self, steps: int, max_seconds: float | None) -> float:
        """The next update's learning rate, had the run been planned for that long."""
        done = share_done(self.step, steps, self._seconds_before, max_seconds)
        return learning_rate(self.config, self.step, min(1.0, done))

    def _progress(self, elapsed: float) -> float:
        return share_done(self.step, self.plan.steps, elapsed, self.config.max_seconds)

    def _agree(self, elapsed: float) -> float:
        """The main process's clock, where the time decides about the learning rate."""
        if self.config.max_seconds is None or self.accelerator.num_processes == 1:
            return elapsed
        main = elapsed if self.accelerator.is_main_process else 0.0
        return float(self.accelerator.reduce(self._tensor([main]), "sum"))

    def _update(self) -> Metrics:
        evaluations: list[Metrics] = []

        def closure() -> float:
            evaluations.append(self._gradient())
            return evaluations[-1]["loss"]

        first = closure()
        metrics = evaluations[0]
        if not torch.isfinite(torch.tensor(metrics["grad_norm"])):
            self._skip()
            return metrics
        self._skipped_in_a_row = 0
        self.is_whole = False
        with record_function("optimizer"):
            if self.config.optim == "lbfgs":
                losses = chain([first], iter(closure, None))  # it asks first for what is known
                self._optimizer.step(lambda: next(losses))
            else:
                self._optimizer.step()
            if self._average is not None:
                self._average.update_parameters(self.adapter)
        return metrics

    def _skip(self) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1

    def _check_skipped(self) -> None:
        """Ends a run that does nothing but skip."""
        if self._skipped_in_a_row < MAX_SKIPPED:
            return
        names = ", ".join(sorted(self._no_numbers))
        of = f" ({names} are not finite)" if names else ""
        raise ValueError(
            f"{MAX_SKIPPED} updates in a row had no finite gradient{of}, up to update {self.step}: "
            f"a lower --lr, --precision float32 or another reward may help"
        )

    def _gradient(self) -> Metrics:
        """Leaves the gradient of this update in the parameters, clipped; returns its metrics."""
        self._optimizer.zero_grad(set_to_none=True)
        names = ["loss", *self.rewards.weights, "penalty", "norm"]
        sums = torch.zeros(len(names) + 3, dtype=torch.float64)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        for batch in self.plan.update(self.step):
            share = batch.share(process, processes, company=self.config.shard)
            terms = self._backward(share)
            if terms is None or not share.counts:
                continue
            if not torch.isfinite(terms.loss).all():
                sums[-1] += 1
                scores = terms.scores.items()
                bad = [name for name, score in scores if not torch.isfinite(score).all()]
                self._no_numbers |= {f"scores of {name}" for name in bad}
                continue
            values = [terms.loss, *terms.scores.values(), terms.penalty, terms.norm]
            sums[: len(names)] += torch.stack([v.detach().double().sum() for v in values]).cpu()
            sums[-3] += len(terms.loss)
        sums[-2] = float(self._stop)
        *totals, images, stop, left_out = self._sum_over_processes(sums).tolist()
        self.skipped += int(left_out)
        self._average_gradients(images)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.grad_clip)
        metrics = {name: total / max(images, 1) for name, total in zip(names, totals, strict=True)}
        metrics["reward"] = sum(w * metrics[name] for name, w in self.rewards.weights.items())
        grad_norm = float(norm) if images else float("nan")
        return metrics | {"grad_norm": grad_norm, "images": images, "stop": stop}

    def _sum_over_processes(self, sums: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return sums
        return self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()

    def _average_gradients(self, images: float) -> None:
        for parameter in self._parameters:
            if self.accelerator.num_processes > 1:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(own, "sum")
            if parameter.grad is not None:
                parameter.grad /= max(images, 1)

    def _backward(self, batch: Batch) -> Terms | None:
        """Adds the gradient of the sum over this process's images; None if it has none."""
        inputs = self._inputs(batch)
        if self.config.train_type == "finetune":
            return None if inputs is None else self._backward_through_generator(batch, *inputs)
        return self._backward_through_noise(batch, inputs)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Conditioning, list] | None:
        if not batch.prompts:
            return None
        device = self.accelerator.device
        noise, generators = batch.draw(self.latent_shape)
        rows = self.features.rows(batch.prompts)
        conditioning = {name: tensor.to(device) for name, tensor in rows.items()}
        return noise.to(device), conditioning, generators

    def _backward_through_noise(self, batch: Batch, inputs: tuple | None) -> Terms | None:
        """The chain through the modulated noise in two parts, so that the reward's gradient there
        can be clipped image by image."""
        if inputs is None:
            self._image_limit(self._tensor([]))
            return None
        noise, conditioning, generators = inputs
        with record_function("hypernetwork"):
            change = predict_change(self.adapter, self.network, noise, conditioning)
        modulated = modulate(noise, change.delta)
        start = modulated.detach().requires_grad_(True)
        images = self._images(start, conditioning, generators, batch.generator_steps)
        scores, image_gradient = self._scores(images, batch)
        reward_loss = self.rewards.image_losses(scores) * batch.counts
        with record_function("backward"):
            (gradient,) = torch.autograd.grad(images, start, image_gradient * batch.counts)
        norms = gradient.flatten(1).norm(dim=1)
        limit = self._image_limit(norms if batch.counts else norms[:0])
        penalty = regulariser(change.output, modulated, self.config.reg_type)
        loss = reward_loss + self.config.reg_weight * penalty * batch.counts
        if self._is_usable(loss):
            with record_function("backward"):
                ends = [modulated, loss.sum()]
                torch.autograd.backward(ends, [clip_images(gradient, limit), None])
        return self._terms(loss, scores, penalty, modulated)

    def _backward_through_generator(
        self, batch: Batch, noise: Tensor, conditioning: Conditioning, generators: list
    ) -> Terms:
        with self.adapter.attached(self.network):
            images = self._images(noise, conditioning, generators, batch.generator_steps)
        scores, image_gradient = self._scores(images, batch)
        loss = self.rewards.image_losses(scores) * batch.counts
        if self._is_usable(loss):
            with record_function("backward"):
                images.backward(image_gradient * batch.counts)
        return self._terms(loss, scores, torch.zeros_like(loss), noise)

    def _scores(self, images: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The rewards' scores (B,) by name, and the gradient of the images' losses in them; NaN
        where an image is not finite, as when half precision overflows: no reward accepts those."""
        if not torch.isfinite(images).all():
            self._no_numbers.add("images")
            nan = torch.full_like(images[:, 0, 0, 0], torch.nan, dtype=torch.float32)
            return dict.fromkeys(self.rewards.weights, nan), torch.full_like(images, torch.nan)
        return self.rewards.loss_gradient(images, batch.prompts)

    def _is_usable(self, loss: Tensor) -> bool:
        """Whether the gradient may be added. With a sharded generator no process can leave one out
        alone: then one loss that is not finite spoils the whole update."""
        return self.config.shard or bool(torch.isfinite(loss).all())

    def _images(
        self, noise: Tensor, conditioning: Conditioning, generators: list, steps: int
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        with record_function("generator"):
            latents = self.family.denoise(self.pipeline, noise, conditioning, steps, generators)
        with record_function("decode"):
            return self.family.decode(self.pipeline, latents)

    def _terms(
        self, loss: Tensor, scores: dict[str, Tensor], penalty: Tensor, noise: Tensor
    ) -> Terms:
        detached = {name: score.detach() for name, score in scores.items()}
        return Terms(loss, detached, penalty.detach(), noise.detach().flatten(1).norm(dim=1))

    def _image_limit(self, norms: Tensor) -> float:
        """The quantile of the norms (B,) of the batch's images in all processes."""
        quantile = self.config.image_grad_quantile
        if quantile == 1:
            return float("inf")
        if self.accelerator.num_processes > 1:
            padded = norms.new_full((self.config.batch_size,), float("nan"))
            padded[: len(norms)] = norms
            norms = self.accelerator.gather(padded)
        return float(norms.nanquantile(quantile))

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.accelerator.device)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to resume as if the run had not stopped."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "seconds": self._seconds_before,
            "adapter": self.adapter.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self.step, self.skipped = state["step"], state["skipped"]
        self._skipped_in_a_row = state["skipped_in_a_row"] % MAX_SKIPPED  # at the end: count anew
        self._seconds_before = state["seconds"]
        self.adapter.load_state_dict(state["adapter"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])


def make_adapter(
    network: torch.nn.Module, family: Family, config: TrainingConfig, base_model: str
) -> Adapter:
    """The adapter that a run starts with, in float32 on the CPU.

    Raises:
        ValueError: the network has no layer of that name.
        AdapterError: `init_adapter` cannot be read or does not fit.
    """
    if config.init_adapter is not None:
        hypernetwork = load_adapter(config.init_adapter, family=family.name).float()
        hypernetwork.check_fits(network)
        return hypernetwork
    shape = {"rank": config.lora_rank, "alpha": config.lora_alpha, "base_model": base_model}
    shape |= {"adapt_depthwise": config.adapt_depthwise}
    shape |= {"generator": torch.Generator().manual_seed(config.seed)}
    if config.train_type == "finetune":
        return GeneratorLora.initialise(network, family, **shape)
    last = config.last_layer_name
    if last is not None and last not in dict(network.named_modules()):
        raise ValueError(
            f"last_layer_name: {type(network).__name__} has no layer {last!r}; the last layer of "
            f"{family.title} is {family.last_layer}"
        )
    replaces = not config.modulate_noise
    return NoiseHypernetwork.initialise(
        network, family, last_layer=last, replaces_noise=replaces, **shape
    )


def clip_images(gradient: Tensor, limit: float) -> Tensor:
    """Scales down the images (B, C, H, W) whose L2 norm is above the limit."""
    norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    return gradient * (limit / norms).clamp(max=1).view(-1, 1, 1, 1)
