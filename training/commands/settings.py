"""The settings of every command: each field is a flag and a key of a config file.

They import no torch, so that --help and mistyped flags are answered at once.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ...hypernoise_core.reno_config import RenoConfig
from ...hypernoise_core.reward_registry import NAMES, PAPER_WEIGHTS
from ..config import TrainingConfig
from ..evaluation.settings import EvaluationConfig
from ..settings import FLAT, PLACE

__all__ = [
    "CardConfig",
    "DemoConfig",
    "DownloadConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GenerateConfig",
    "InfoConfig",
    "RenoCommand",
    "ScoreConfig",
    "TrainCommand",
]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `hypernoise demo`."""

    out: Path = Path("out/demo")
    """Output folder for the report, the images and the adapter."""
    seed: int = 0
    """Seed of the training run."""
    steps: int = 800
    """Number of training updates."""
    max_seconds: float = 290.0
    """Time limit of the training in seconds."""
    per_category: int = 80
    """Held-out captions to evaluate in each of the six categories."""
    cache_dir: Path | None = None
    """Folder of encoded prompts. Default: ~/.cache/hypernoise."""


def _flag(reward: str) -> str:
    """The name of a reward in the published flags."""
    return {"redness": "red"}.get(reward, reward.replace("-", "_"))


def _reward_fields(reward: str) -> list[tuple[str, Any, Any]]:
    flag, group = _flag(reward), "Single rewards"
    enable = Parameter(negative=(), group=group, help=f"Train on {reward}.")
    disable = Parameter(negative=(), group=group, help=f"Do not train on {reward}.")
    weight = Parameter(group=group, help=f"Weight of {reward}.")
    return [
        (f"enable_{flag}", Annotated[bool, enable], False),
        (f"disable_{flag}", Annotated[bool, disable], False),
        (f"{flag}_weighting", Annotated[float | None, weight], None),
    ]


RewardFlags = make_dataclass(
    "RewardFlags",
    [each for reward in NAMES for each in _reward_fields(reward)],
    frozen=True,
    kw_only=True,
    namespace={"__module__": __name__},
)
"""The published flags for single rewards: --enable_X, --disable_X and --X_weighting for each."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainingConfig):
    """Settings of `hypernoise train`.

    To train with several processes, run: accelerate launch -m hypernoise.training.cli train ...
    SIGTERM and Ctrl-C save a checkpoint and stop the run.
    """

    single_rewards: Annotated[RewardFlags, FLAT] = RewardFlags()
    disable_reg: Annotated[bool, Parameter(negative=())] = False
    """Turn the regulariser off, like --reg_weight 0."""
    resume: bool = False
    """Resume from the newest checkpoint in save_dir; start a new run if there is none."""
    dry_run: bool = False
    """Print the settings, the number of parameters and the memory needed, and stop."""
    processes: int = 1
    """Number of processes to assume in a dry run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", self._chosen_rewards())
        if self.disable_reg:
            object.__setattr__(self, "reg_weight", 0.0)
        super().__post_init__()

    def _chosen_rewards(self) -> dict[str, float]:
        """The weights, after the flags for single rewards."""
        weights = dict(self.rewards)
        for name in NAMES:
            flag = _flag(name)
            enable = getattr(self.single_rewards, f"enable_{flag}")
            disable = getattr(self.single_rewards, f"disable_{flag}")
            weight = getattr(self.single_rewards, f"{flag}_weighting")
            if disable and (enable or weight is not None):
                raise ValueError(f"--disable_{flag} contradicts another flag for {name}")
            if disable:
                weights.pop(name, None)
            elif enable:
                weights.setdefault(name, PAPER_WEIGHTS.get(name, 1.0))
            if weight is not None:
                if name not in weights:
                    raise ValueError(f"--{flag}_weighting without {name}: add --enable_{flag}")
                weights[name] = weight
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def config(self) -> TrainingConfig:
        """The settings of the run itself."""
        return TrainingConfig(**{f.name: getattr(self, f.name) for f in fields(TrainingConfig)})


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Settings of `hypernoise generate`.

    Raises:
        ValueError: images_per_prompt is below 1.
    """

    prompts: tuple[str, ...] = ()
    """One or more prompts."""
    prompts_file: Path | None = None
    """File with more prompts: .txt, .json, .jsonl, .csv, .tsv or .parquet, or - for standard
    input."""
    model: Annotated[str, PLACE] = "tiny-sprint"
    """Generator: tiny-sprint, a diffusers folder, or a repository in the Hugging Face cache."""
    adapter: Path | None = None
    """Noise hypernetwork: a .safetensors file, or a peft or diffusers folder. Default: the
    embedded one for tiny-sprint."""
    alpha: float | None = None
    """LoRA alpha of an adapter that does not store it."""
    steps: int = 1
    """Generator steps."""
    seed: int = 0
    """Seed of the first image; the following images use the following seeds."""
    images_per_prompt: int = 1
    """Images per prompt, each from its own noise."""
    strength: float = 1.0
    """Scale of the hypernetwork's output; 0 is the base model."""
    height: int | None = None
    """Image height in pixels. Default: the default of the model."""
    width: int | None = None
    """Image width in pixels. Default: the default of the model."""
    batch_size: int = 8
    """Images per forward pass."""
    out: Path = Path("out/images")
    """Output folder. Files of the same name are replaced."""

    def __post_init__(self) -> None:
        if self.images_per_prompt < 1:
            raise ValueError(f"images_per_prompt must be at least 1, not {self.images_per_prompt}")


@dataclass(frozen=True, kw_only=True)
class RenoCommand:
    """Settings of `hypernoise reno`.

    Raises:
        ValueError: only one of height and width is given.
    """

    prompts: tuple[str, ...] = ()
    """One or more prompts."""
    prompts_file: Path | None = None
    """File with more prompts: .txt, .json, .jsonl, .csv, .tsv or .parquet, or - for standard
    input."""
    model: Annotated[str, PLACE] = "tiny-sprint"
    """Generator: tiny-sprint, a diffusers folder, or a repository in the Hugging Face cache."""
    rewards: str | None = None
    """Rewards to maximise, with their weights: hps=5,clip=0.01, or paper. Default: tiny-preference
    for tiny-sprint, otherwise paper."""
    rewards_folder: Path | None = None
    """Folder of downloaded reward weights. Default: the Hugging Face cache."""
    adapter: Path | None = None
    """Noise hypernetwork whose noise the search starts from. Default: plain noise."""
    search: Annotated[RenoConfig, FLAT] = RenoConfig()
    seed: int = 0
    """Seed of the first image; the following images use the following seeds."""
    height: int | None = None
    """Image height in pixels. Default: the default of the model."""
    width: int | None = None
    """Image width in pixels. Default: the default of the model."""
    batch_size: int = 4
    """Images to search for at the same time."""
    out: Path = Path("out/reno")
    """Output folder for images, noise and scores. Files of the same name are replaced."""

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise ValueError("give both --height and --width, or neither")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width; None: the model's default."""
        return None if self.height is None else (self.height, self.width)


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `hypernoise score`.

    An interrupted run continues where it stopped. To use several GPUs or processes, run:
    accelerate launch -m hypernoise.training.cli score ...
    """

    images: Path
    """Folder of images, searched with its subfolders."""
    _: KW_ONLY
    prompts: Path
    """A .csv, .tsv, .json or .jsonl file with the columns image (or file_name) and prompt (or
    caption or text); or a text file with one prompt for all images, or with one prompt per line
    in the alphabetical order of the images."""
    rewards: str = "paper"
    """Rewards and their weights: hps=5,imagereward, or paper."""
    csv: Path = Path("out/scores.csv")
    """Output table: one row per image with the score of each reward and their weighted sum."""
    rewards_folder: Path | None = None
    """Folder of downloaded reward weights. Default: the Hugging Face cache."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the large reward networks."""
    batch_size: int = 16
    """Images per forward pass."""


@dataclass(frozen=True)
class CardConfig:
    """Settings of `hypernoise card`."""

    adapter: Path
    """A .safetensors file, or a peft or diffusers folder."""
    _: KW_ONLY
    report: Path | None = None
    """The report.json of `hypernoise evaluate`, to include its tables."""
    out: Path = Path("README.md")
    """Output file."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `hypernoise export`."""

    adapter: Path
    """A .safetensors or .bin file, or a peft or diffusers folder."""
    out: Path
    """Output file, ending in .safetensors."""
    _: KW_ONLY
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Data type of the weights."""
    rank: int | None = None
    """Reduce every branch to this rank with a singular value decomposition. The error is
    printed."""
    alpha: float | None = None
    """LoRA alpha of an adapter that does not store it; it is stored in the output."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class DownloadConfig:
    """Settings of `hypernoise download`."""

    what: tuple[str, ...]
    """The word rewards, for the four rewards of the paper (about 13 GB); or rewards followed by the
    names of the rewards to download."""
    _: KW_ONLY
    folder: Path | None = None
    """Target folder. Default: the Hugging Face cache."""


@dataclass(frozen=True)
class InfoConfig:
    """Settings of `hypernoise info`."""

    adapter: Path
    """A .safetensors file, or a peft or diffusers folder."""
    _: KW_ONLY
    alpha: float | None = None
    """LoRA alpha of an adapter that does not store it."""
