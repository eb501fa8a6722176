"""The nodes that score images: Score Images, Best of N, Compare Images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..hypernoise_core.rewards import Ensemble, compare, score_in_batches
from ..hypernoise_core.rewards.reward import check_size
from ..hypernoise_core.text import check_prompts, printable
from ..hypernoise_core.text_file import is_blank, lines
from . import comfy_model, latents, pictures, widgets
from .rewards import Rewards, RewardType

_OVERSHOOT = 0.5  # of bicubic and Lanczos resizing, at most


def prompt_inputs() -> list[Any]:
    """The two prompt widgets of the nodes that score."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            tooltip=(
                "The prompt to score the images against. Connect a list to use one prompt per "
                "image, or one per batch of a list of batches."
            ),
        ),
        io.Boolean.Input(
            "one_prompt_per_line",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Use each line as a separate prompt: the first line for the first image, and so on."
            ),
        ),
    ]


class ScoreImages(io.ComfyNode):
    """IMAGE + HYPERNOISE_REWARD + prompt -> scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_ScoreImages",
            display_name="Score Images",
            category="HyperNoise",
            description="Scores images with a reward and shows each image with its score.",
            search_aliases=["reward", "rate images", "image quality", "preference score"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch of images, or a list of batches."),
                RewardType.Input("reward", tooltip="A reward from Load Reward."),
                *prompt_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One score per image."
                ),
                io.Float.Output(display_name="mean", tooltip="The mean of the scores."),
                io.String.Output(
                    display_name="report",
                    tooltip="The score of each reward for each image, as text.",
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
        shown = _captioned(images, [f"{s:.3f}" for s in scored.total.tolist()])
        text = "\n".join([*scored.warnings, scored.table()])
        return io.NodeOutput(
            scored.total.tolist(),
            scored.total.mean().item(),
            text,
            ui=_Preview(shown, text, cls),
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
                "Keeps the images with the highest scores, together with their latents and seeds. "
                "The best image comes first."
            ),
            search_aliases=["pick best", "sort images", "top k", "select images"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch of images, or a list of batches."),
                RewardType.Input("reward", tooltip="A reward from Load Reward."),
                *prompt_inputs()[:1],
                io.Int.Input(
                    "keep", default=1, min=1, max=4096, tooltip="Number of images to keep."
                ),
                prompt_inputs()[1],
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="The latents of the images, to continue with those of the best ones.",
                ),
                io.Int.Input(
                    "seeds",
                    optional=True,
                    force_input=True,
                    tooltip="The seeds of the images: one for all, one per batch or one per image.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Latent.Output(
                    display_name="latents",
                    tooltip=(
                        "The latents of the kept images, with masks and batch indices, so that "
                        "KSampler generates the same noise again. Requires the input latents."
                    ),
                ),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seeds of the kept images. Requires the input seeds.",
                ),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The scores of the kept images.",
                ),
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
        wanted = widgets.single(cls, "keep", keep)
        widgets.check(cls, keep=wanted)
        (scored,) = score(cls, {"images": images}, reward, prompt, one_prompt_per_line)
        count = len(scored.total)
        if wanted > count:
            raise ValueError(f"Best of N: keep is {wanted}, but there are only {count} images.")
        chosen = scored.total.argsort(descending=True, stable=True)[:wanted].tolist()
        best = _chosen_images(images, chosen)
        scores = [scored.total[i].item() for i in chosen]
        text = "\n".join([*scored.warnings, scored.table(chosen)])
        return io.NodeOutput(
            best,
            _NotConnected("latents")
            if latents is None
            else _chosen_latents(latents, chosen, count),
            _NotConnected("seeds") if seeds is None else _chosen_seeds(seeds, images, chosen),
            scores,
            ui=_Preview(_captioned([best], [f"{s:.3f}" for s in scores]), text, cls),
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
                "Compares two sets of images pair by pair with a reward. Returns the share of "
                "pairs that the second set wins, with a 95% confidence interval and a plot."
            ),
            search_aliases=["win rate", "a/b test", "side by side", "compare scores"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "first", tooltip="The first set, for example images without a hypernetwork."
                ),
                io.Image.Input(
                    "second",
                    tooltip="The second set, with as many images, for example with a hypernetwork.",
                ),
                RewardType.Input("reward", tooltip="A reward from Load Reward."),
                *prompt_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="win_rate",
                    tooltip="Share of pairs that the second set wins, 0 to 1. A tie counts half.",
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
            f"(95% confidence interval: {result.low:.1%} to {result.high:.1%}); mean score: first "
            f"{totals[0].mean():.4g}, second {totals[1].mean():.4g}"
        )
        text = "\n".join([*scored[0].warnings, text])
        return io.NodeOutput(result.win_rate, plot, text, ui=_Preview(plot, text, cls))


@dataclass(frozen=True)
class Scored:
    """Scores (N,) of N images: of each reward, and their weighted sum."""

    each: dict[str, torch.Tensor]
    total: torch.Tensor
    warnings: list[str]

    def table(self, rows: Sequence[int] | None = None) -> str:
        """One line per image."""
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
    """Score lists of IMAGEs (B, H, W, 3), given by input name, against the same prompts.

    Raises:
        ValueError: the numbers of prompts and images do not match, or an image cannot be scored.
    """
    rewards = widgets.single(node, "reward", reward)
    per_line = widgets.single(node, "one_prompt_per_line", one_prompt_per_line)
    widgets.check(node, one_prompt_per_line=per_line)
    for text in prompt:
        widgets.check(node, prompt=text)
    counts = {side: image_counts(side, images) for side, images in sides.items()}
    if len(set(map(sum, counts.values()))) > 1:
        given = " and ".join(f"{sum(of_side)} images in {side}" for side, of_side in counts.items())
        raise ValueError(f"Compare Images: got {given}. Connect the same number of images to both.")
    prompts = prompts_for(list(counts.values()), prompt, per_line)
    comfy.model_management.load_models_gpu(list(rewards.patchers.values()))
    ensemble = rewards.ensemble()
    warnings = ensemble.prompt_warnings(prompts)
    for warning in warnings:
        comfy_model.LOG.warning("HyperNoise: %s", printable(warning))
    return [_scored(ensemble, images, prompts, warnings) for images in sides.values()]


def _scored(
    ensemble: Ensemble, images: list[torch.Tensor], prompts: list[str], warnings: list[str]
) -> Scored:
    parts, start = [], 0
    for batch in filter(len, images):
        pixels = batch[..., :3].movedim(-1, 1).clamp(0, 1)
        parts.append(score_in_batches(ensemble, pixels, prompts[start : start + len(batch)]))
        start += len(batch)
    each = {name: torch.cat([part[name] for part in parts]) for name in ensemble.weights}
    return Scored(each, ensemble.total(each), warnings)


def image_counts(name: str, images: Sequence[torch.Tensor]) -> list[int]:
    """The number of images in each IMAGE of an input, after checking that all can be scored.

    Values slightly outside of [0, 1], which resizing leaves, are clamped later.

    Raises:
        ValueError: names the input, the image by its index in the whole list, and the problem.
    """
    counts: list[int] = []
    for batch in images:
        _check_batch(name, sum(counts), batch)
        counts.append(len(batch))
    if not sum(counts):
        raise ValueError(f"{name} contains no images. Connect at least one.")
    return counts


def _check_batch(name: str, first: int, batch: torch.Tensor) -> None:
    """`first` is the index of its first image in the whole list."""
    if not isinstance(batch, torch.Tensor):
        raise ValueError(f"{name} contains {batch!r:.60} instead of image {first}.")
    if batch.ndim != 4 or batch.shape[-1] not in (3, 4) or not batch.is_floating_point():
        raise ValueError(
            f"{name}: rewards need floating-point images of shape (B, H, W, 3), but the batch with "
            f"image {first} has shape {tuple(batch.shape)} and type {batch.dtype}."
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
                f"{name}: image {i} has values from {low:.3g} to {high:.3g}, but all values must "
                f"be numbers between 0 and 1."
            )


def prompts_for(sides: Sequence[Sequence[int]], prompt: list[str], per_line: bool) -> list[str]:
    """A prompt for each image.

    Args:
        sides: the batch sizes of each input. A comparison has two, whose images form pairs.

    Raises:
        ValueError: there are too few or too many, or one is not valid text.
    """
    if per_line:
        prompt = [line.strip() for text in prompt for line in lines(text) if not is_blank(line)]
        sides = [[1] * sum(sides[0])]  # the first line belongs to the first image
    check_prompts(prompt)
    count = sum(sides[0])
    spread = [each for counts in sides if (each := _one_per_image(prompt, counts))]
    if not spread or (per_line and len(prompt) != count):
        raise ValueError(
            f"prompt: got {len(prompt)} prompts for {count} images. Use one prompt for all images "
            f"(with one_prompt_per_line off), one per image, or a list with one per batch."
        )
    if any(each != spread[0] for each in spread):
        raise ValueError(
            f"prompt: got {len(prompt)} prompts, but the batch sizes in first and second differ. "
            f"Use one prompt per image."
        )
    return spread[0]


def _one_per_image(values: Sequence[Any], counts: Sequence[int]) -> list[Any] | None:
    """One value per image, from one for all images, one per image or one per batch; None if the
    number of values is none of these."""
    if len(values) == 1:
        return list(values) * sum(counts)
    if len(values) == sum(counts):
        return list(values)
    if len(values) == len(counts):
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    return None


class _NotConnected(ExecutionBlocker):
    """An output of Best of N whose input is not connected: an error if a node uses it.

    ComfyUI reads the message when it is about to run such a node. If the message were returned,
    ComfyUI would show it once and cache the run as done, and later runs would show nothing.
    Raising it instead stops every run.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def message(self) -> str:
        raise ValueError(
            f"Best of N can output {self._name} only if its input {self._name} is connected. "
            f"Connect the {self._name} of the images to it."
        )


def _chosen_images(images: list[torch.Tensor], chosen: list[int]) -> torch.Tensor:
    """(N, H, W, 3), or (N, H, W, 4) if all of them have an alpha channel."""
    every = [image for batch in images for image in batch]
    best = [every[i] for i in chosen]
    if len(sizes := {f"{image.shape[1]} x {image.shape[0]}" for image in best}) > 1:
        raise ValueError(
            f"Best of N: the best images differ in size ({', '.join(sorted(sizes))}). Use images "
            f"of the same size."
        )
    channels = min(image.shape[-1] for image in best)
    return torch.stack([image[..., :channels] for image in best])


def _chosen_latents(given: list[dict], chosen: list[int], count: int) -> dict:
    for latent in given:
        if not isinstance(latent, dict) or "samples" not in latent:
            raise ValueError(f"Best of N: latents contains {latent!r:.60}, which is not a latent.")
    found = sum(len(latent["samples"]) for latent in given)
    if found != count:
        raise ValueError(
            f"Best of N: got {found} latents for {count} images. Connect one latent per image."
        )
    try:
        return latents.pick(given, chosen)
    except ValueError as error:
        raise ValueError(f"Best of N: {error}.") from error


def _chosen_seeds(seeds: list[int], images: list[torch.Tensor], chosen: list[int]) -> list[int]:
    for seed in seeds:
        widgets.check(BestOfN, seeds=seed)
    counts = list(map(len, images))
    each = _one_per_image(seeds, counts)
    if each is None:
        raise ValueError(
            f"Best of N: got {len(seeds)} seeds for {sum(counts)} images. Use one for all images, "
            f"one per batch or one per image."
        )
    return [each[i] for i in chosen]


def _captioned(images: list[torch.Tensor], captions: list[str]) -> torch.Tensor:
    """All images with their captions as one batch, resized to the first."""
    drawn, start = [], 0
    for batch in filter(len, images):
        shown = pictures.with_captions(batch[..., :3], captions[start : start + len(batch)])
        start += len(batch)
        if drawn and shown.shape[1:] != drawn[0].shape[1:]:
            size = drawn[0].shape[1:3]
            shown = torch.nn.functional.interpolate(shown.movedim(-1, 1), size=size).movedim(1, -1)
        drawn.append(shown)
    return torch.cat(drawn)


class _Preview:
    """Images with a text below them, as the front end shows them on a node."""

    def __init__(self, images: torch.Tensor, text: str, node: type[io.ComfyNode]) -> None:
        self._parts = ui.PreviewImage(images, cls=node), ui.PreviewText(text)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for part in self._parts for key, value in part.as_dict().items()}
