"""Settings of a training run. The names are those of the reference implementation's arguments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from ..hypernoise_core.reward_registry import check_reward, paper_weights, parse_weights
from ..hypernoise_core.seeds import check_seeds
from .settings import PLACE


def _weights(_: Any, tokens: Sequence[Token]) -> dict[str, float]:
    return parse_weights(tokens[0].value)


_WEIGHTS = Parameter(converter=_weights, accepts_keys=False, n_tokens=1)
_MODULATE = Parameter(
    name=("--enable_modulate_noise", "--modulate_noise"), negative="--disable_modulate_noise"
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one run; the defaults are the reference's.

    An update is one optimizer step. It uses `batch_size` x `accumulation_steps` images, whatever
    the number of processes that share them.

    Raises:
        ValueError: a value is out of its range, or two of them contradict each other.
    """

    # Model and data
    model: Annotated[str, PLACE] = "sana"
    """Generator: sana, flux, sd-turbo, tiny-sprint, a diffusers folder, or a repository in the
    Hugging Face cache."""
    task: Annotated[str, PLACE] = "example-prompts"
    """Training prompts: example-prompts, geneval, pickapic, all, tiny-world, a .txt, .json, .jsonl,
    .csv, .tsv or .parquet file, a folder of such files, or a dataset on the Hugging Face hub."""
    data_dir: Path | None = None
    """Folder with the published prompt files of geneval, pickapic and all."""
    prompt_column: str | None = None
    """Column or key that holds the prompts in a file or dataset. Default: prompt, caption or
    text."""
    train_type: Literal["noise", "finetune"] = "noise"
    """noise trains a noise hypernetwork; finetune trains a LoRA on the generator, for
    comparison."""
    image_size: int | None = None
    """Height and width of the images in pixels. Default: the size the reference trains at."""

    # Adapter
    lora_rank: int = 128
    """Rank of every LoRA branch."""
    alpha_multiplier: float = 2.0
    """LoRA alpha divided by the rank, which is the scale of the branches."""
    last_layer_name: str | None = None
    """Layer whose LoRA branch is the output of the hypernetwork. Default: the last layer of the
    model."""
    adapt_depthwise: bool = False
    """Also adapt depthwise convolutions, as the released SANA-Sprint adapter does."""
    init_adapter: Path | None = None
    """Adapter file or folder to start from; its rank and alpha replace the settings above."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 turns it off. The average is what
    is evaluated and saved."""
    modulate_noise: Annotated[bool, _MODULATE] = True
    """Add the output of the hypernetwork to the noise, or use it in place of the noise."""

    # Objective
    rewards: Annotated[dict[str, float], _WEIGHTS] = field(default_factory=paper_weights)
    """Rewards and their weights: hps=5,imagereward=1, or paper for the weights of the paper."""
    reg_type: Literal["l2", "kl"] = "l2"
    """l2 penalises the mean square of the hypernetwork's output; kl penalises the negative log
    density of the norm of the modulated noise."""
    reg_weight: float = 0.5
    """Weight of the regulariser; 0 turns it off."""
    latent_type: Literal["inf", "batch", "one", "multi"] = "inf"
    """inf draws new noise for each image, batch one noise per update; one uses the same noise
    throughout the run, multi a fixed noise for each position in the batch."""
    one_prompt_per_batch: bool = False
    """Use the same prompt for all images of a batch."""
    max_generator_steps: int = 1
    """Run the generator for a random number of steps from 1 to this one in each batch, with
    gradients through all of them."""
    image_grad_quantile: float = 1.0
    """Clip each image's gradient at the modulated noise to this quantile of the norms in the
    batch; 1 turns it off."""

    # Optimisation
    epochs: int = 50
    """Passes over the training prompts."""
    steps: int | None = None
    """Number of updates; replaces epochs."""
    max_seconds: float | None = None
    """Time limit in seconds. The learning rate schedule is shortened to end in time."""
    batch_size: int = 32
    """Images per forward pass, over all processes."""
    accumulation_steps: int = 1
    """Batches per update."""
    optim: Literal["sgd", "adam", "adamw", "lbfgs"] = "sgd"
    """Optimizer. sgd has a momentum of 0.9; lbfgs uses a strong Wolfe line search on the batches of
    the update."""
    lr: float = 1e-3
    """Learning rate after the warmup."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate schedule after the warmup; linear and cosine end at 0."""
    warmup_steps: int = 10
    """Updates of linear learning rate warmup from 0."""
    weight_decay: float = 1e-4
    """Weight decay of adamw."""
    adam_beta2: float = 0.999
    """Decay of the squared gradients in adam and adamw."""
    grad_clip: float = 1.0
    """Maximum L2 norm of the gradient of an update."""
    seed: int = 0
    """Seed of the initial weights, of the prompt order and of the noise."""

    # Memory
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the frozen networks; the adapter is always float32."""
    use_checkpoint: bool = False
    """Save memory with gradient checkpointing, at the cost of time."""
    memsave: bool = True
    """Save memory by not storing inputs that frozen layers do not need for the backward pass."""
    shard: bool = False
    """Shard the frozen generator over the devices of all processes (FSDP), for models too large for
    one device."""

    # Evaluation and files
    log_every: int = 2500
    """Updates between evaluations on held-out prompts; 0 turns them off."""
    eval_task: Annotated[str | None, PLACE] = None
    """Evaluation prompts, given as for task. Default: some prompts of the task, which are then not
    trained on."""
    eval_prompts: int = 32
    """Maximum number of evaluation prompts."""
    watch_reward: str | None = None
    """Reward that is not trained on but measured at each evaluation, to detect reward hacking; none
    turns it off. Default: one whose weights are available."""
    noise_prompt: str = "red"
    """Prompt that the hypernetwork gets instead of the real one in one grid of each evaluation."""
    viz_noise: bool = False
    """Also show decoded noise, the hypernetwork's output and their sum at each evaluation."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Experiment tracker to log to, in addition to metrics.jsonl."""
    save_every: int = 25_000
    """Updates between checkpoints; there is always one after the last update."""
    keep_last: int = 3
    """Number of checkpoints to keep."""
    cache_dir: Path | None = None
    """Folder of downloaded models and encoded prompts. Default: the Hugging Face cache and
    ~/.cache/hypernoise."""
    rewards_folder: Path | None = None
    """Folder of downloaded reward weights. Default: the Hugging Face cache."""
    save_dir: Path = Path("out/train")
    """Output folder of the run."""

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
            raise ValueError("there are no rewards: enable one, such as hps")
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
