"""What a training run is told. The names are those of the reference implementation's arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Suppress

from ..hypernoise_core.reward_names import check_reward, paper_weights
from ..hypernoise_core.seeds import check_seeds
from .values import Place


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one run; the defaults are the reference's.

    An update is one step of the optimizer. It takes `batch_size` x `accumulation_steps` images,
    whatever the number of processes that share them.

    Raises:
        ValueError: a value is out of its range, or two of them contradict each other.
    """

    # What is trained, and on what
    model: Place = "sana"
    """Generator: sana, flux, sd-turbo, tiny-sprint, a diffusers folder, or a repository in the
    Hugging Face cache."""
    task: Place = "example-prompts"
    """Training prompts: example-prompts, geneval, pickapic, all, tiny-world, a .txt, .json, .jsonl,
    .csv or .parquet file, or a data set of the Hugging Face hub."""
    data_dir: Path | None = None
    """Folder with the published prompt files of geneval, pickapic and all."""
    prompt_column: str | None = None
    """Column or key of the prompts in a file or data set; default: prompt, caption or text."""
    train_type: Literal["noise", "finetune"] = "noise"
    """noise: a noise hypernetwork. finetune: a LoRA on the generator itself, for comparison."""
    image_size: int | None = None
    """Height and width of the images in pixels; default: what the reference trains the model at."""

    # The adapter
    lora_rank: int = 128
    """Rank of every LoRA branch."""
    alpha_multiplier: float = 2.0
    """LoRA alpha divided by the rank: the branches' scale."""
    last_layer_name: str | None = None
    """The layer that gives its branch alone; default: the model's own last layer."""
    adapt_depthwise: bool = False
    """Adapt depthwise convolutions too, as the released SANA-Sprint adapter does."""
    init_adapter: Path | None = None
    """Adapter file or folder to go on from; rank and alpha are its own then."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, which is what is evaluated and saved
    then; 0: none."""
    modulate_noise: Annotated[bool, Suppress] = True
    """Add the hypernetwork's output to the noise; otherwise it takes the noise's place."""

    # The objective
    rewards: Annotated[dict[str, float], Suppress] = field(default_factory=paper_weights)
    """Weight of each reward; the command line has flags of its own for it."""
    reg_type: Literal["l2", "kl"] = "l2"
    """l2: mean of f squared. kl: negative log-density of the modulated noise's norm."""
    reg_weight: float = 0.5
    """Weight of the regulariser; 0: none."""
    latent_type: Literal["inf", "batch", "one", "multi"] = "inf"
    """inf: fresh noise for each image. batch: one fresh noise an update. one: one noise for the
    whole run. multi: a fixed noise for each slot of the batch."""
    one_prompt_per_batch: bool = False
    """All images of a batch have one prompt."""
    max_generator_steps: int = 1
    """Each batch runs the generator for 1 to so many steps, drawn at random, with gradient through
    all of them."""
    image_grad_quantile: float = 1.0
    """The reward's gradient at the modulated noise is clipped, image by image, to this quantile of
    the norms in the batch; 1 clips nothing."""

    # The optimisation
    epochs: int = 50
    """Times that each prompt is trained on."""
    steps: int | None = None
    """Updates, instead of epochs."""
    max_seconds: float | None = None
    """Wall-clock limit in seconds: the schedule shortens so that the run ends in time."""
    batch_size: int = 32
    """Images that run at a time, over all processes."""
    accumulation_steps: int = 1
    """Batches in an update."""
    optim: Literal["sgd", "adam", "adamw", "lbfgs"] = "sgd"
    """sgd has momentum 0.9; lbfgs has a strong Wolfe line search on the update's own batch."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up; linear and cosine end at 0."""
    warmup_steps: int = 10
    """Updates of linear warm-up, from 0."""
    weight_decay: float = 1e-4
    """Of adamw."""
    adam_beta2: float = 0.999
    """Decay of the squared gradients of adam and adamw."""
    grad_clip: float = 1.0
    """The gradient of an update is clipped to this L2 norm."""
    seed: int = 0
    """Seed of the weights, of the order of the prompts and of the noise."""

    # Memory
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the frozen networks; the adapter is always float32."""
    use_checkpoint: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    memsave: bool = True
    """Frozen layers that do not need their inputs for the backward pass do not keep them."""
    shard: bool = False
    """Spread the frozen generator over the processes' devices (FSDP), for models that do not fit
    on one."""

    # Evaluation and files
    log_every: int = 2500
    """Updates between evaluations on held-out prompts; 0: none."""
    eval_task: Place | None = None
    """Prompts of the evaluation, named as for `task`; default: some prompts of the task, which are
    not trained on then."""
    eval_prompts: int = 32
    """Prompts of an evaluation at most."""
    watch_reward: str | None = None
    """A reward that is not trained on, measured at each evaluation to see reward hacking; default:
    one that is at hand; none: none."""
    noise_prompt: str = "red"
    """What the hypernetwork is told instead of the prompt in one grid of each evaluation."""
    viz_noise: bool = False
    """Also decode noise, f and their sum at each evaluation."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where metrics go beside metrics.jsonl."""
    save_every: int = 25_000
    """Updates between checkpoints; the last update always has one."""
    keep_last: int = 3
    """Checkpoints kept."""
    cache_dir: Path | None = None
    """Folder of downloaded models and encoded prompts; default: the Hugging Face cache, and
    ~/.cache/hypernoise."""
    rewards_folder: Path | None = None
    """Folder of downloaded rewards; default: the Hugging Face cache."""
    save_dir: Path = Path("out/train")
    """Folder of the run."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_rewards()
        if self.watch_reward in self.rewards:
            raise ValueError(
                f"watch_reward {self.watch_reward} is trained on: watch one that is not, or none"
            )
        if self.train_type == "finetune":
            self._check_finetune()
        if self.one_prompt_per_batch and self.latent_type in ("one", "batch"):
            raise ValueError(
                f"one_prompt_per_batch with latent_type {self.latent_type} would train on copies "
                f"of one image; use latent_type inf or multi"
            )

    def _check_ranges(self) -> None:
        check_seeds([self.seed])
        above_0 = ["lora_rank", "alpha_multiplier", "epochs", "batch_size", "accumulation_steps"]
        above_0 += ["lr", "grad_clip", "max_generator_steps", "save_every", "keep_last"]
        above_0 += ["eval_prompts", *self._given("steps", "max_seconds", "image_size")]
        for name in above_0:
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("reg_weight", "warmup_steps", "weight_decay", "log_every"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("ema_decay", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
                )
        if not 0 < self.image_grad_quantile <= 1:
            raise ValueError(
                f"image_grad_quantile must be above 0 and at most 1, not {self.image_grad_quantile}"
            )

    def _check_rewards(self) -> None:
        if not self.rewards:
            raise ValueError("rewards names none: enable one, such as hps")
        for name, weight in self.rewards.items():
            check_reward(name)
            if not (math.isfinite(weight) and weight):
                raise ValueError(f"the weight of {name} must be a number and not 0, not {weight}")

    def _check_finetune(self) -> None:
        for name in ("last_layer_name", "init_adapter"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to train_type noise, not finetune")
        if not self.modulate_noise:
            raise ValueError("modulate_noise belongs to train_type noise, not finetune")
        if self.adapt_depthwise:
            raise ValueError(
                "adapt_depthwise belongs to train_type noise: neither diffusers nor ComfyUI could "
                "load such a LoRA"
            )
        if self.image_grad_quantile != 1:
            raise ValueError("image_grad_quantile needs modulated noise: train_type noise")

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    @property
    def lora_alpha(self) -> float:
        return self.lora_rank * self.alpha_multiplier
