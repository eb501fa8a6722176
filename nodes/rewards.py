"""Load Reward: the models that score images, their weights and their downloads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..hypernoise_core.errors import TensorFileError
from ..hypernoise_core.rewards import (
    REWARDS,
    Ensemble,
    WeightStore,
    get_reward,
    load_rewards,
    paper_weights,
)
from . import comfy_model, model_folders, widgets

RewardType = io.Custom("HYPERNOISE_REWARD")
PAPER = "paper: HPSv2.1, ImageReward, CLIPScore, PickScore"
NAMES = {  # what the widget shows -> name; first the one that needs nothing
    f"{cls.title} ({'embedded' if cls.embedded else cls.name})": cls.name
    for cls in sorted(REWARDS, key=lambda cls: not cls.embedded)
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Rewards:
    """The value of the type HYPERNOISE_REWARD: rewards managed by ComfyUI's memory management."""

    patchers: dict[str, Any]
    weights: dict[str, float]

    @classmethod
    def load(cls, weights: dict[str, float], dtype: torch.dtype) -> "Rewards":
        """Load each reward separately, so that ComfyUI can move them separately."""
        folders = model_folders.rewards_folders()
        members = {
            name: load_rewards({name: 1.0}, folders, dtype).members[name] for name in weights
        }
        return cls({name: comfy_model.manage(m) for name, m in members.items()}, dict(weights))

    def ensemble(self) -> Ensemble:
        """The weighted sum of the rewards, on the devices that ComfyUI chose."""
        return Ensemble(
            {name: (p.model.module, self.weights[name]) for name, p in self.patchers.items()}
        )

    def __add__(self, other: "Rewards") -> "Rewards":
        if twice := self.weights.keys() & other.weights.keys():
            raise ValueError(
                f"Load Reward: {', '.join(sorted(twice))} is already in add_to. Choose another "
                f"reward, or change its weight there."
            )
        return Rewards(self.patchers | other.patchers, self.weights | other.weights)


class LoadReward(io.ComfyNode):
    """A reward, or several chained with weights -> HYPERNOISE_REWARD."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_LoadReward",
            display_name="Load Reward",
            category="HyperNoise",
            description=(
                "Loads a reward: a model that scores how good an image looks and how well it "
                "matches a prompt. Chain several through add_to to use their weighted sum."
            ),
            search_aliases=["score model", "hpsv2", "imagereward", "pickscore", "clip score",
                            "aesthetic"],
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=[*NAMES, PAPER],
                    tooltip=(
                        "The reward to load. tiny-preference only knows the coloured shapes of the "
                        "tiny generator. Redness needs no download. 'paper' is the ensemble that "
                        "noise hypernetworks are trained with."
                    ),
                ),
                io.Float.Input(
                    "weight", default=1.0, min=-1000.0, max=1000.0, step=0.01,
                    tooltip=(
                        "Weight of this reward in the sum. With a negative weight, lower scores "
                        "are better."
                    ),
                ),
                RewardType.Input(
                    "add_to", optional=True, tooltip="Rewards to add this one to.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="float32", optional=True,
                    advanced=True,
                    tooltip="Precision of the large networks. bfloat16 needs half the memory.",
                ),
                io.Boolean.Input(
                    "download", default=False, optional=True, advanced=True,
                    tooltip=(
                        "Download missing weights from Hugging Face to models/hypernoise_rewards, "
                        "up to 4 GB per reward. When off, nothing is downloaded."
                    ),
                ),
            ],
            outputs=[RewardType.Output(display_name="reward")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, reward: str | None, **others: object) -> str:
        """Changes if weights are replaced on disk: those of any reward if the widget is linked."""
        chosen = NAMES.values() if reward not in (*NAMES, PAPER) else _weights(reward)
        return _fingerprint(chosen)

    @classmethod
    def execute(
        cls,
        reward: str,
        weight: float,
        add_to: Rewards | None = None,
        precision: str = "float32",
        download: bool = False,
    ) -> io.NodeOutput:
        widgets.check(cls, reward=reward, weight=weight, precision=precision, download=download)
        chosen = _weights(reward)
        if download:
            _download(chosen)
        try:
            loaded = Rewards.load(
                {name: weight * share for name, share in chosen.items()}, PRECISIONS[precision]
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Or turn on download in Load Reward.") from error
        return io.NodeOutput(loaded if add_to is None else add_to + loaded)


def _weights(choice: str) -> dict[str, float]:
    """The rewards for an option of the widget, with the weight of each."""
    return paper_weights() if choice == PAPER else {NAMES[choice]: 1.0}


def _fingerprint(names: Iterable[str]) -> str:
    store = WeightStore(model_folders.rewards_folders())
    files = dict.fromkeys(file for name in names for file in get_reward(name).files)
    try:
        paths = [path for file in files if (path := store.look_for(file))]
    except TensorFileError as error:
        return str(error)
    return "|".join(map(model_folders.fingerprint, paths))


def _download(names: Sequence[str]) -> None:
    store = WeightStore(model_folders.rewards_folders())
    for file in dict.fromkeys(file for name in names for file in get_reward(name).files):
        store.fetch(file)
