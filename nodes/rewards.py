"""The nodes that score images: load rewards, score, keep the best, compare."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..hypernoise_core.errors import TensorFileError
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
from ..hypernoise_core.text import check_prompts, printable
from ..hypernoise_core.text_file import is_blank, lines
from . import comfy_model, latents, model_folders, pictures, widgets

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
        folders = model_folders.rewards_folders()
        members = {
            name: load_rewards({name: 1.0}, folders, dtype).members[name] for name in weights
        }
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
                "for each image or for each batch of a list of batches."
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
    def fingerprint_inputs(cls, reward: str | None, **others: object) -> str:
        """Weights that are replaced on disk are loaded anew; of a linked reward any counts."""
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
            raise FileNotFoundError(f"{error} Or switch on download in Load Reward.") from error
        return io.NodeOutput(loaded if add_to is None else add_to + loaded)


def _weights(choice: str) -> dict[str, float]:
    """The rewards that the widget's choice stands for, and the share of each."""
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
        (scored,) = score(cls, {"images": images}, reward, prompt, one_prompt_per_line)
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
                    tooltip="The seeds of these images: one for all, one a batch or one each.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Latent.Output(
                    display_name="latents",
                    tooltip=(
                        "With their masks, and each one's place in its batch, so that KSampler "
                        "draws the same noise again. Needs latents at the input."
                    ),
                ),
                io.Int.Output(
                    display_name="seeds", is_output_list=True, tooltip="Needs seeds at the input."
                ),
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
        wanted = widgets.only(cls, "keep", keep)
        widgets.check(cls, keep=wanted)
        (scored,) = score(cls, {"images": images}, reward, prompt, one_prompt_per_line)
        count = len(scored.total)
        if wanted > count:
            raise ValueError(f"Best of N: keep is {wanted}, but there are only {count} images.")
        chosen = scored.total.argsort(descending=True, stable=True)[:wanted].tolist()
        best = _chosen_images(images, chosen)
        scores = [scored.total[i].item() for i in chosen]
        text = "\n".join([*scored.complaints, scored.table(chosen)])
        return io.NodeOutput(
            best,
            _NotConnected("latents")
            if latents is None
            else _chosen_latents(latents, chosen, count),
            _NotConnected("seeds") if seeds is None else _chosen_seeds(seeds, images, chosen),
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
        sides = {"first": first, "second": second}
        scored = score(cls, sides, reward, prompt, one_prompt_per_line)
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
        widgets.check(cls, seed=seed, count=count)
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
    node: type[io.ComfyNode],
    sides: Mapping[str, list[torch.Tensor]],
    reward: list[Rewards],
    prompt: list[str],
    one_prompt_per_line: Sequence[bool],
) -> list[Scored]:
    """Scores lists of IMAGEs (B, H, W, 3), by the names of their inputs, against the same prompts.

    Raises:
        ValueError: prompts and images do not fit each other, or an image cannot be scored.
    """
    rewards = widgets.only(node, "reward", reward)
    per_line = widgets.only(node, "one_prompt_per_line", one_prompt_per_line)
    widgets.check(node, one_prompt_per_line=per_line)
    for text in prompt:
        widgets.check(node, prompt=text)
    counts = {side: image_counts(side, images) for side, images in sides.items()}
    if len(set(map(sum, counts.values()))) > 1:
        given = " and ".join(f"{sum(of_side)} images in {side}" for side, of_side in counts.items())
        raise ValueError(f"Compare Images: {given}; a comparison takes pairs.")
    prompts = prompts_for(list(counts.values()), prompt, per_line)
    comfy.model_management.load_models_gpu(list(rewards.patchers.values()))
    ensemble = rewards.ensemble()
    complaints = ensemble.prompt_warnings(prompts)
    for complaint in complaints:
        comfy_model.LOG.warning("HyperNoise: %s", printable(complaint))
    return [_scored(ensemble, images, prompts, complaints) for images in sides.values()]


def _scored(
    ensemble: Ensemble, images: list[torch.Tensor], prompts: list[str], complaints: list[str]
) -> Scored:
    parts, start = [], 0
    for batch in filter(len, images):
        pixels = batch[..., :3].movedim(-1, 1).clamp(0, 1)
        parts.append(score_in_batches(ensemble, pixels, prompts[start : start + len(batch)]))
        start += len(batch)
    each = {name: torch.cat([part[name] for part in parts]) for name in ensemble.weights}
    return Scored(each, ensemble.total(each), complaints)


def image_counts(name: str, images: Sequence[torch.Tensor]) -> list[int]:
    """How many images each IMAGE of an input holds, all of which can be scored; values somewhat
    outside of [0, 1], which resizing leaves, are cut off later.

    Raises:
        ValueError: names the input, the image by its number in the whole list, and what is wrong.
    """
    counts: list[int] = []
    for batch in images:
        _check_batch(name, sum(counts), batch)
        counts.append(len(batch))
    if not sum(counts):
        raise ValueError(f"{name} holds no image; give at least one.")
    return counts


def _check_batch(name: str, first: int, batch: torch.Tensor) -> None:
    """`first` is the number of its first image."""
    if not isinstance(batch, torch.Tensor):
        raise ValueError(f"{name} holds {batch!r:.60} in the place of image {first}.")
    if batch.ndim != 4 or batch.shape[-1] not in (3, 4) or not batch.is_floating_point():
        raise ValueError(
            f"{name}: a reward takes images (B, H, W, 3) of floating-point numbers; image {first} "
            f"is in a batch of {tuple(batch.shape)} of {batch.dtype}."
        )
    if not len(batch):
        return
    try:
        check_size(*batch.shape[1:3])
    except ValueError as error:
        raise ValueError(f"{name}, image {first}: {error}.") from error
    for i, image in enumerate(batch, first):
        low, high = image[..., :3].amin().item(), image[..., :3].amax().item()
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise ValueError(
                f"{name}: image {i} has values from {low:.3g} to {high:.3g}; all have to be "
                f"numbers in [0, 1]."
            )


def prompts_for(sides: Sequence[Sequence[int]], prompt: list[str], per_line: bool) -> list[str]:
    """A prompt for each image.

    Args:
        sides: how many images each batch has; of the sides of a comparison, whose images belong
            together in pairs, each.

    Raises:
        ValueError: there are too few or too many, or one is no text.
    """
    if per_line:
        prompt = [line.strip() for text in prompt for line in lines(text) if not is_blank(line)]
        sides = [[1] * sum(sides[0])]  # the first line belongs to the first image
    check_prompts(prompt)
    count = sum(sides[0])
    spread = [each for counts in sides if (each := _spread(prompt, counts))]
    if not spread or (per_line and len(prompt) != count):
        raise ValueError(
            f"prompt: {len(prompt)} prompts for {count} images; give one for all (with "
            f"one_prompt_per_line off), one for each image, or a list with one for each batch."
        )
    if any(each != spread[0] for each in spread):
        raise ValueError(
            f"prompt: {len(prompt)} prompts for batches that are of other sizes in first than in "
            f"second; give one for each image."
        )
    return spread[0]


def _spread(values: Sequence[Any], counts: Sequence[int]) -> list[Any] | None:
    """One for each image, from one for all images, one for each or one for each batch; None where
    it is another number."""
    if len(values) == 1:
        return list(values) * sum(counts)
    if len(values) == sum(counts):
        return list(values)
    if len(values) == len(counts):
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    return None


class _NotConnected(ExecutionBlocker):
    """An output of Best of N whose input is not connected: an error where a node uses it.

    ComfyUI asks for the message when it is about to run such a node. A message that is handed back
    is shown once, and the run counts as done and is kept: the next one shows nothing at all. So it
    is raised, which ends this run and every other.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def message(self) -> str:
        raise ValueError(
            f"Best of N gives {self._name} only where its input {self._name} is connected: connect "
            f"the {self._name} of its images there."
        )


def _chosen_images(images: list[torch.Tensor], chosen: list[int]) -> torch.Tensor:
    """(N, H, W, 3), or with an alpha channel where all of them have one."""
    every = [image for batch in images for image in batch]
    best = [every[i] for i in chosen]
    if len(sizes := {f"{image.shape[1]} x {image.shape[0]}" for image in best}) > 1:
        raise ValueError(
            f"Best of N: the best images differ in size ({', '.join(sorted(sizes))}); give images "
            f"of one size."
        )
    channels = min(image.shape[-1] for image in best)
    return torch.stack([image[..., :channels] for image in best])


def _chosen_latents(given: list[dict], chosen: list[int], count: int) -> dict:
    for latent in given:
        if not isinstance(latent, dict) or "samples" not in latent:
            raise ValueError(f"Best of N: latents holds {latent!r:.60}, which is no latent.")
    found = sum(len(latent["samples"]) for latent in given)
    if found != count:
        raise ValueError(f"Best of N: {found} latents for {count} images.")
    try:
        return latents.pick(given, chosen)
    except ValueError as error:
        raise ValueError(f"Best of N: {error}.") from error


def _chosen_seeds(seeds: list[int], images: list[torch.Tensor], chosen: list[int]) -> list[int]:
    for seed in seeds:
        widgets.check(BestOfN, seeds=seed)
    counts = list(map(len, images))
    each = _spread(seeds, counts)
    if each is None:
        raise ValueError(
            f"Best of N: {len(seeds)} seeds for {sum(counts)} images; give one for all, one for "
            f"each batch or one for each image."
        )
    return [each[i] for i in chosen]


def _one_size(images: list[torch.Tensor], captions: list[str]) -> torch.Tensor:
    """All images with their captions as one batch, in the size of the first."""
    drawn, start = [], 0
    for batch in filter(len, images):
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
