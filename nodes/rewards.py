"""The nodes that score images: load rewards, score, keep the best, compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from ..hypernoise_core.rewards import (
    REWARDS,
    Ensemble,
    WeightStore,
    compare,
    get_reward,
    load_rewards,
    paper_weights,
    score_in_batches,
)
from ..hypernoise_core.rewards.reward import check_size
from ..hypernoise_core.text import printable
from . import comfy_model, model_folders, pictures

RewardType = io.Custom("HYPERNOISE_REWARD")
PAPER = "paper: HPSv2.1, ImageReward, CLIPScore, PickScore"
NAMES = {  # what the widget shows -> name; first the one that needs nothing
    f"{cls.title} ({'embedded' if cls.embedded else cls.name})": cls.name
    for cls in sorted(REWARDS, key=lambda cls: not cls.embedded)
}
_OVERSHOOT = 0.5  # of bicubic and Lanczos resizing, at most
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Rewards:
    """The value of the type HYPERNOISE_REWARD: rewards that ComfyUI's memory management moves."""

    patchers: dict[str, Any]
    weights: dict[str, float]

    @classmethod
    def load(cls, weights: dict[str, float], dtype: torch.dtype) -> "Rewards":
        """Each reward by itself, so that ComfyUI can move it by itself."""
        folder = model_folders.rewards_folder()
        members = {name: load_rewards({name: 1.0}, folder, dtype).members[name] for name in weights}
        return cls({name: comfy_model.manage(m) for name, m in members.items()}, dict(weights))

    def ensemble(self) -> Ensemble:
        """On the device where ComfyUI has put them."""
        return Ensemble(
            {name: (p.model.module, self.weights[name]) for name, p in self.patchers.items()}
        )

    def __add__(self, other: "Rewards") -> "Rewards":
        if twice := self.weights.keys() & other.weights.keys():
            raise ValueError(
                f"Load Reward: {', '.join(sorted(twice))} is in add_to already; choose another "
                f"reward or change its weight there."
            )
        return Rewards(self.patchers | other.patchers, self.weights | other.weights)


def prompt_inputs() -> list[Any]:
    """The two widgets of the nodes that score."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            tooltip=(
                "What the images are scored against: one text for all, or a list with one text "
                "for each image."
            ),
        ),
        io.Boolean.Input(
            "one_prompt_per_line",
            default=False,
            optional=True,
            advanced=True,
            tooltip="On: the first line belongs to the first image, the second to the second.",
        ),
    ]


class LoadReward(io.ComfyNode):
    """A reward, or several chained with weights -> HYPERNOISE_REWARD."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_LoadReward",
            display_name="Load Reward",
            category="HyperNoise",
            description=(
                "Loads a model that scores how good an image is and how well it fits a prompt. "
                "Chain several through add_to: the score is then the weighted sum."
            ),
            search_aliases=["score model", "hpsv2", "imagereward", "pickscore", "clip score",
                            "aesthetic"],
            inputs=[
                io.Combo.Input(
                    "reward",
                    options=[*NAMES, PAPER],
                    tooltip=(
                        "tiny-preference knows the coloured shapes of the tiny generator alone; "
                        "redness needs no download; 'paper' is the ensemble that noise "
                        "hypernetworks are trained with."
                    ),
                ),
                io.Float.Input(
                    "weight", default=1.0, min=-1000.0, max=1000.0, step=0.01,
                    tooltip="Factor on this reward's score in the sum. Negative: less is better.",
                ),
                RewardType.Input(
                    "add_to", optional=True, tooltip="Rewards that this one is added to.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="float32", optional=True,
                    advanced=True,
                    tooltip="Of the large networks. bfloat16 takes half the memory.",
                ),
                io.Boolean.Input(
                    "download", default=False, optional=True, advanced=True,
                    tooltip=(
                        "Get weights that are not on this machine from Hugging Face into "
                        "models/hypernoise_rewards, once: up to 4 GB a reward. Off: nothing is "
                        "downloaded."
                    ),
                ),
            ],
            outputs=[RewardType.Output(display_name="reward")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        reward: str,
        weight: float,
        add_to: Rewards | None = None,
        precision: str = "float32",
        download: bool = False,
    ) -> io.NodeOutput:
        chosen = paper_weights() if reward == PAPER else {NAMES[reward]: 1.0}
        if download:
            _download(chosen)
        try:
            loaded = Rewards.load(
                {name: weight * share for name, share in chosen.items()}, PRECISIONS[precision]
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} Or switch on download in Load Reward.") from error
        return io.NodeOutput(loaded if add_to is None else add_to + loaded)


def _download(names: Sequence[str]) -> None:
    store = WeightStore(model_folders.rewards_folder())
    for file in dict.fromkeys(file for name in names for file in get_reward(name).files):
        store.fetch(file)


class ScoreImages(io.ComfyNode):
    """IMAGE + HYPERNOISE_REWARD + prompt -> scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_ScoreImages",
            display_name="Score Images",
            category="HyperNoise",
            description="Scores images with a reward and shows them with their scores.",
            search_aliases=["reward", "rate images", "image quality", "preference score"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch, or a list of them."),
                RewardType.Input("reward", tooltip="From Load Reward."),
                *prompt_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One number an image."
                ),
                io.Float.Output(display_name="mean", tooltip="Mean of the scores."),
                io.String.Output(
                    display_name="report", tooltip="Every reward's score of every image, as text."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        reward: list[Rewards],
        prompt: list[str],
        one_prompt_per_line: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        scored = score(images, reward[0], prompt, one_prompt_per_line[0])
        shown = _one_size(images, [f"{s:.3f}" for s in scored.total.tolist()])
        text = "\n".join([*scored.complaints, scored.table()])
        return io.NodeOutput(
            scored.total.tolist(),
            scored.total.mean().item(),
            text,
            ui=_Shown(shown, text, cls),
        )


class BestOfN(io.ComfyNode):
    """Images, their latents and seeds -> the best of them, best first."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_BestOfN",
            display_name="Best of N",
            category="HyperNoise",
            description=(
                "Keeps the images that a reward likes best, with their latents and seeds, the "
                "best one first."
            ),
            search_aliases=["pick best", "sort images", "top k", "select images"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch, or a list of them."),
                RewardType.Input("reward", tooltip="From Load Reward."),
                *prompt_inputs()[:1],
                io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to keep."),
                prompt_inputs()[1],
                io.Latent.Input(
                    "latents", optional=True, tooltip="Of these images, to go on with the best."
                ),
                io.Int.Input(
                    "seeds",
                    optional=True,
                    force_input=True,
                    tooltip="The seeds of these images, one for all or one each.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Latent.Output(
                    display_name="latents",
                    tooltip=(
                        "Nothing without latents at the input. It remembers each one's place in "
                        "its batch, so that KSampler draws the same noise again."
                    ),
                ),
                io.Int.Output(display_name="seeds", is_output_list=True),
                io.Float.Output(display_name="scores", is_output_list=True),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        reward: list[Rewards],
        prompt: list[str],
        keep: list[int],
        one_prompt_per_line: Sequence[bool] = (False,),
        latents: list[dict] | None = None,
        seeds: list[int] | None = None,
    ) -> io.NodeOutput:
        scored = score(images, reward[0], prompt, one_prompt_per_line[0])
        count = len(scored.total)
        if keep[0] > count:
            raise ValueError(f"Best of N: keep is {keep[0]}, but there are only {count} images.")
        chosen = scored.total.argsort(descending=True, stable=True)[: keep[0]].tolist()
        every = [image for batch in images for image in batch]
        if len({image.shape for image in (every[i] for i in chosen)}) > 1:
            raise ValueError("Best of N: the best images differ in size; give images of one size.")
        scores = [scored.total[i].item() for i in chosen]
        best = torch.stack([every[i] for i in chosen])
        text = "\n".join([*scored.complaints, scored.table(chosen)])
        return io.NodeOutput(
            best,
            _chosen_latents(latents, chosen, count),
            _chosen_seeds(seeds, images, chosen),
            scores,
            ui=_Shown(_one_size([best], [f"{s:.3f}" for s in scores]), text, cls),
        )


class CompareImages(io.ComfyNode):
    """Two sets of images of the same prompts -> how often the second scores higher."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_CompareImages",
            display_name="Compare Images",
            category="HyperNoise",
            description=(
                "Compares two batches pair by pair with a reward: the share of pairs that the "
                "second wins, with a 95% confidence interval and a plot."
            ),
            search_aliases=["win rate", "a/b test", "side by side", "compare scores"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("first", tooltip="Images of one kind, such as without."),
                io.Image.Input("second", tooltip="As many of the other kind, such as with."),
                RewardType.Input("reward", tooltip="From Load Reward."),
                *prompt_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="win_rate", tooltip="Of the second, 0 to 1; a tie counts half."
                ),
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        first: list[torch.Tensor],
        second: list[torch.Tensor],
        reward: list[Rewards],
        prompt: list[str],
        one_prompt_per_line: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        counts = [sum(map(len, images)) for images in (first, second)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"Compare Images: {counts[0]} images in first and {counts[1]} in second; a "
                f"comparison takes pairs."
            )
        scored = [
            score(images, reward[0], prompt, one_prompt_per_line[0]) for images in (first, second)
        ]
        totals = [s.total for s in scored]
        result = compare(*totals)
        plot = pictures.comparison_plot(*totals, result, ("first", "second"))
        text = (
            f"second wins {result.win_rate:.1%} of {result.pairs} pairs "
            f"(95% confidence: {result.low:.1%} to {result.high:.1%}); mean score "
            f"{totals[0].mean():.4g} and {totals[1].mean():.4g}"
        )
        text = "\n".join([*scored[0].complaints, text])
        return io.NodeOutput(result.win_rate, plot, text, ui=_Shown(plot, text, cls))


class Seeds(io.ComfyNode):
    """A seed and a number -> a list of seeds that count up."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_Seeds",
            display_name="Seeds",
            category="HyperNoise",
            description=(
                "A list of seeds. A sampler that gets it runs once for each, so that every image "
                "can be made again from its own seed."
            ),
            search_aliases=["seed list", "many seeds", "seed range", "best of n"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF - 4096,
                    control_after_generate=True,
                    tooltip="The first seed; the next ones count up.",
                ),
                io.Int.Input("count", default=8, min=1, max=4096, tooltip="How many."),
            ],
            outputs=[io.Int.Output(display_name="seeds", is_output_list=True)],
        )

    @classmethod
    def execute(cls, seed: int, count: int) -> io.NodeOutput:
        return io.NodeOutput([seed + i for i in range(count)])


@dataclass(frozen=True)
class Scored:
    """Scores (N,) of N images: of each reward, and their weighted sum."""

    each: dict[str, torch.Tensor]
    total: torch.Tensor
    complaints: list[str]

    def table(self, rows: Sequence[int] | None = None) -> str:
        """A line an image."""
        names = list(self.each)
        lines = []
        for i in range(len(self.total)) if rows is None else rows:
            parts = [f"{name} {self.each[name][i]:.4g}" for name in names]
            lines.append(f"image {i}: {self.total[i]:.4g}" + f" ({', '.join(parts)})")
        return "\n".join(lines)


def score(
    images: list[torch.Tensor], rewards: Rewards, prompt: list[str], per_line: bool
) -> Scored:
    """Scores a list of IMAGEs (B, H, W, 3).

    Raises:
        ValueError: prompts and images do not fit each other, or an image cannot be scored.
    """
    for batch in images:
        check_images(batch)
    counts = [len(batch) for batch in images]
    prompts = prompts_for(sum(counts), prompt, per_line)
    comfy.model_management.load_models_gpu(list(rewards.patchers.values()))
    ensemble = rewards.ensemble()
    parts, start = [], 0
    for batch, count in zip(images, counts, strict=True):
        rows = prompts[start : start + count]
        pixels = batch[..., :3].movedim(-1, 1).clamp(0, 1)
        parts.append(score_in_batches(ensemble, pixels, rows))
        start += count
    each = {name: torch.cat([part[name] for part in parts]) for name in rewards.weights}
    complaints = ensemble.complaints(prompts)
    for complaint in complaints:
        comfy_model.LOG.warning("HyperNoise: %s", printable(complaint))
    return Scored(each, ensemble.total(each), complaints)


def check_images(batch: torch.Tensor) -> None:
    """Makes sure that an IMAGE can be scored; values somewhat outside of [0, 1], which resizing
    leaves, are cut off later.

    Raises:
        ValueError: says what is wrong.
    """
    if batch.ndim != 4 or batch.shape[-1] not in (3, 4) or not batch.is_floating_point():
        raise ValueError(
            f"A reward takes images (B, H, W, 3) of floating-point numbers, not "
            f"{tuple(batch.shape)} of {batch.dtype}."
        )
    check_size(*batch.shape[1:3])
    for i, image in enumerate(batch):
        low, high = image[..., :3].amin().item(), image[..., :3].amax().item()
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise ValueError(
                f"image {i} has values from {low:.3g} to {high:.3g}; all have to be numbers in "
                f"[0, 1]."
            )


def prompts_for(count: int, prompt: list[str], per_line: bool) -> list[str]:
    """A prompt for each of `count` images.

    Raises:
        ValueError: there are too few or too many.
    """
    if per_line:
        prompt = [line.strip() for text in prompt for line in text.splitlines() if line.strip()]
    if len(prompt) == 1 and not per_line:
        return prompt * count
    if len(prompt) != count:
        raise ValueError(
            f"prompt: {len(prompt)} prompts for {count} images; give one for all (with "
            f"one_prompt_per_line off) or one for each."
        )
    return list(prompt)


def _chosen_latents(latents: list[dict] | None, chosen: list[int], count: int) -> dict | None:
    if not latents:
        return None
    samples = [sample for latent in latents for sample in latent["samples"]]
    places = [
        place
        for latent in latents
        for place in latent.get("batch_index", range(len(latent["samples"])))
    ]
    if len(samples) != count:
        raise ValueError(f"Best of N: {len(samples)} latents for {count} images.")
    return {
        "samples": torch.stack([samples[i] for i in chosen]),
        "batch_index": [places[i] for i in chosen],
    }


def _chosen_seeds(
    seeds: list[int] | None, images: list[torch.Tensor], chosen: list[int]
) -> list[int]:
    if not seeds:
        return []
    count = sum(map(len, images))
    if len(seeds) == 1:
        seeds = seeds * count
    elif len(seeds) == len(images):  # a seed for each batch
        seeds = [seed for seed, batch in zip(seeds, images, strict=True) for _ in batch]
    if len(seeds) != count:
        raise ValueError(
            f"Best of N: {len(seeds)} seeds for {count} images; give one for all or one each."
        )
    return [seeds[i] for i in chosen]


def _one_size(images: list[torch.Tensor], captions: list[str]) -> torch.Tensor:
    """All images with their captions as one batch, in the size of the first."""
    drawn, start = [], 0
    for batch in images:
        shown = pictures.with_captions(batch[..., :3], captions[start : start + len(batch)])
        start += len(batch)
        if drawn and shown.shape[1:] != drawn[0].shape[1:]:
            size = drawn[0].shape[1:3]
            shown = torch.nn.functional.interpolate(shown.movedim(-1, 1), size=size).movedim(1, -1)
        drawn.append(shown)
    return torch.cat(drawn)


class _Shown:
    """Pictures and a text below them, as ComfyUI's page shows them on a node."""

    def __init__(self, images: torch.Tensor, text: str, node: type[io.ComfyNode]) -> None:
        self._parts = ui.PreviewImage(images, cls=node), ui.PreviewText(text)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for part in self._parts for key, value in part.as_dict().items()}
