"""The parts of a training run or an evaluation: model, rewards, and encoded prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ..hypernoise_core.families import family_of_pipeline
from ..hypernoise_core.rewards import Ensemble, load_rewards, reward_identities
from . import writable
from .config import TrainingConfig
from .feature_store import (
    FeatureStore,
    drop_text_encoders,
    embed_prompts,
    features_key,
    precompute_text_features,
)
from .memory import checkpoint_activations, save_memory
from .pipelines import load_pipeline, model_folder, model_identity, text_parts
from .processes import join
from .progress import keep_loading_quiet
from .prompts import load_prompts, spread
from .published_models import image_size as image_size_of
from .sharding import shard
from .trainer import Trainer


@dataclass(frozen=True)
class Prompts:
    """Prompts to train on and to evaluate on."""

    training: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class Parts:
    """Model, rewards and encoded prompts, on the device of this process."""

    accelerator: Accelerator
    pipeline: Any
    rewards: Ensemble | None
    """None if no reward was asked for."""
    features: FeatureStore
    size: tuple[int, int]
    """Height and width of the images in pixels."""
    identity: dict[str, Any]
    """Tells the weights of model and rewards from others of the same names."""


@dataclass(frozen=True)
class TrainingParts(Parts):
    """The parts of a training run, and the prompts it trains on and is evaluated on."""

    prompts: Prompts

    def trainer(self, config: TrainingConfig) -> Trainer:
        """The trainer of these parts; raises what `Trainer` raises."""
        return Trainer(
            self.pipeline,
            self.rewards,
            self.prompts.training,
            self.features,
            config,
            size=self.size,
            base_model=config.model,
            accelerator=self.accelerator,
        )


def choose_prompts(config: TrainingConfig) -> Prompts:
    """The prompts to train on, and the held-out prompts of the evaluation.

    Without `eval_task` the held-out prompts, at most a quarter of all, are taken out of the task.

    Raises:
        FileNotFoundError, ValueError: as `load_prompts` raises them.
    """
    read = {"data_dir": config.data_dir, "column": config.prompt_column}
    prompts = load_prompts(config.task, **read)
    if config.eval_task is not None:
        held_out = load_prompts(config.eval_task, **read)
        return Prompts(prompts, spread(held_out, config.eval_prompts))
    unique = list(dict.fromkeys(prompts))
    held_out = spread(unique, min(config.eval_prompts, len(unique) // 4))
    left = set(unique) - set(held_out)
    return Prompts([prompt for prompt in prompts if prompt in left], held_out)


def prepare_training(config: TrainingConfig, *, also_encode: Sequence[str] = ()) -> TrainingParts:
    """Chooses the prompts of a training run, and prepares its parts.

    Args:
        also_encode: prompts beyond those of training and evaluation.

    Raises:
        FileNotFoundError, ValueError: as `choose_prompts` and `prepare` raise them.
    """
    prompts = choose_prompts(config)
    parts = prepare(
        config.model,
        config.rewards,
        [*prompts.training, *prompts.held_out, config.noise_prompt, *also_encode],
        image_size=config.image_size,
        precision=config.precision,
        batch_size=config.batch_size,
        cache_dir=config.cache_dir,
        rewards_folder=config.rewards_folder,
        memsave=config.memsave,
        use_checkpoint=config.use_checkpoint,
        shard_network=config.shard,
    )
    return TrainingParts(**vars(parts), prompts=prompts)


def prepare(
    model: str,
    rewards: Mapping[str, float],
    prompts: Sequence[str],
    *,
    image_size: int | None,
    precision: Literal["float32", "bfloat16"],
    batch_size: int,
    cache_dir: Path | None,
    rewards_folder: Path | None,
    memsave: bool = True,
    use_checkpoint: bool = False,
    shard_network: bool = False,
) -> Parts:
    """Loads a model and rewards, and encodes the prompts that the cache does not hold yet.

    All processes call this together. Neither the pipeline's text encoders nor the text towers of
    the rewards' CLIPs are kept: pipeline and rewards know these prompts alone.

    Args:
        model: as `load_pipeline` takes it.
        rewards: weights by name; empty: none are loaded.
        prompts: all that images are generated of, or scored against.
        image_size: height and width in pixels; None: as in training.
        precision: of the frozen networks.
        batch_size: prompts that are encoded at a time.
        cache_dir, rewards_folder: as of `TrainingConfig`.
        memsave, use_checkpoint, shard_network: as `memsave`, `use_checkpoint` and `shard` there.

    Raises:
        FileNotFoundError: a model or a reward is missing; says how to get it.
        OSError: the cache has to be written and cannot be; names --cache_dir.
        ValueError: a reward is unknown, or model and size do not fit each other.
    """
    accelerator = join()
    keep_loading_quiet()
    dtype = getattr(torch, precision)
    ensemble = load_rewards(rewards, rewards_folder, dtype) if rewards else None
    folder = model_folder(model, cache_dir)
    cache = (cache_dir or Path("~/.cache/hypernoise").expanduser()) / "features"
    # Templates around the prompts come from diffusers, and tokenizers change with transformers.
    versions = {package: version(package) for package in ("diffusers", "transformers")}
    encoders = model_identity(folder, text_parts(folder))
    features = FeatureStore(cache / features_key(encoders, {"dtype": precision, **versions}))
    if missing := bool(features.missing(prompts)):
        writable.check_folder(cache, "--cache_dir")  # before the model is loaded
    pipeline = load_pipeline(
        model,
        dtype=dtype,
        device="cpu" if shard_network else accelerator.device,
        cache_dir=cache_dir,
        text_encoders=missing,
    )
    accelerator.wait_for_everyone()  # all have looked before anybody writes
    if missing:
        if shard_network and accelerator.device.type != "cpu":  # each part there when it runs
            pipeline.enable_model_cpu_offload(device=accelerator.device)
        embed_prompts(pipeline, prompts, features, batch_size=batch_size, **_place(accelerator))
        accelerator.wait_for_everyone()
        features.refresh()
        pipeline.remove_all_hooks()
        drop_text_encoders(pipeline)
    identity = identity_of_weights(model, rewards, cache_dir, rewards_folder)
    if ensemble is not None:
        ensemble.to(accelerator.device)
        precompute_text_features(ensemble, prompts, cache, **_place(accelerator))
        accelerator.wait_for_everyone()
    networks = [pipeline] if ensemble is None else [pipeline, ensemble]
    if memsave:
        save_memory(*networks)
    if use_checkpoint:
        checkpoint_activations(pipeline)
        if ensemble is not None:
            ensemble.checkpoint_activations()
    if shard_network:
        shard(family_of_pipeline(pipeline).network(pipeline), accelerator)
        pipeline.vae.to(accelerator.device)
    size = image_size_of(model, image_size, pipeline)
    return Parts(accelerator, pipeline, ensemble, features, size, identity)


def identity_of_weights(
    model: str, rewards: Iterable[str], cache_dir: Path | None, rewards_folder: Path | None
) -> dict[str, Any]:
    """Tells the weights of a model and of rewards from others of the same names.

    Raises:
        FileNotFoundError: one of them is not on this machine.
    """
    return {
        "model_content": model_identity(model_folder(model, cache_dir)),
        "reward_content": reward_identities(rewards, rewards_folder),
    }


def _place(accelerator: Accelerator) -> dict[str, int]:
    return {
        "process_index": accelerator.process_index,
        "num_processes": accelerator.num_processes,
    }
