"""What a training run or an evaluation works with: model, rewards, prompts and their encodings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from .published_models import image_size
from .sharding import shard
from .trainer import Trainer


@dataclass(frozen=True)
class Prompts:
    """Prompts to train on and to evaluate on."""

    training: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class Parts:
    """What a run is made of, on the device of this process."""

    accelerator: Accelerator
    pipeline: Any
    rewards: Ensemble
    prompts: Prompts
    features: FeatureStore
    size: tuple[int, int]
    identity: dict[str, Any]
    """What tells the weights of model and rewards from others of their names."""

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
    """The prompts of the task, and those of the evaluation.

    Without `eval_task` every prompt of the evaluation is taken from the task and not trained on; of
    few prompts a quarter at most.

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


def prepare(config: TrainingConfig, *, also_encode: Sequence[str] = ()) -> Parts:
    """Loads what a run needs; prompts are encoded unless they lie in the cache already.

    Args:
        also_encode: prompts beyond those of training and evaluation.

    Raises:
        FileNotFoundError: a model, a reward or a prompt file is missing; says how to get it.
        ValueError: something does not fit.
    """
    accelerator = join()
    keep_loading_quiet()
    prompts = choose_prompts(config)
    dtype = getattr(torch, config.precision)
    rewards = load_rewards(config.rewards, config.rewards_folder, dtype)
    cache = (config.cache_dir or Path("~/.cache/hypernoise").expanduser()) / "features"
    needed = [*prompts.training, *prompts.held_out, config.noise_prompt, *also_encode]
    pipeline, features = _encode(config, accelerator, needed, cache)
    identity = identity_of_weights(
        config.model, config.rewards, config.cache_dir, config.rewards_folder
    )
    rewards.to(accelerator.device)
    precompute_text_features(rewards, needed, cache, **_place(accelerator))
    accelerator.wait_for_everyone()
    if config.memsave:
        save_memory(pipeline, rewards)
    if config.use_checkpoint:
        checkpoint_activations(pipeline)
        rewards.checkpoint_activations()
    if config.shard:
        shard(family_of_pipeline(pipeline).network(pipeline), accelerator)
        pipeline.vae.to(accelerator.device)
    return Parts(
        accelerator,
        pipeline,
        rewards,
        prompts,
        features,
        image_size(config, pipeline),
        identity,
    )


def identity_of_weights(
    model: str, rewards: Iterable[str], cache_dir: Path | None, rewards_folder: Path | None
) -> dict[str, Any]:
    """What tells the weights of a model and of rewards from others of their names.

    Raises:
        FileNotFoundError: one of them is not on this machine.
    """
    return {
        "model_content": model_identity(model_folder(model, cache_dir)),
        "reward_content": reward_identities(rewards, rewards_folder),
    }


def _encode(
    config: TrainingConfig, accelerator: Accelerator, prompts: list[str], cache: Path
) -> tuple[Any, FeatureStore]:
    """The pipeline without its text encoders, on the device, and what they made of the prompts."""
    folder = model_folder(config.model, config.cache_dir)
    dtype = getattr(torch, config.precision)
    # Templates around the prompts come from diffusers, and tokenizers change with transformers.
    versions = {package: version(package) for package in ("diffusers", "transformers")}
    encoders = model_identity(folder, text_parts(folder))
    features = FeatureStore(cache / features_key(encoders, {"dtype": config.precision, **versions}))
    if missing := bool(features.missing(prompts)):
        writable.check_folder(cache, "--cache_dir")  # before the model is loaded
    pipeline = load_pipeline(
        config.model,
        dtype=dtype,
        device="cpu" if config.shard else accelerator.device,
        cache_dir=config.cache_dir,
        text_encoders=missing,
    )
    accelerator.wait_for_everyone()  # all have looked before anybody writes
    if missing:
        if config.shard and accelerator.device.type != "cpu":  # each part there when it runs
            pipeline.enable_model_cpu_offload(device=accelerator.device)
        embed_prompts(
            pipeline,
            prompts,
            features,
            batch_size=config.batch_size,
            **_place(accelerator),
        )
        accelerator.wait_for_everyone()
        features.refresh()
        pipeline.remove_all_hooks()
        drop_text_encoders(pipeline)
    return pipeline, features


def _place(accelerator: Accelerator) -> dict[str, int]:
    return {
        "process_index": accelerator.process_index,
        "num_processes": accelerator.num_processes,
    }
