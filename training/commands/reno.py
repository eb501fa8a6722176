"""`hypernoise reno`: optimise the noise of each image, which a hypernetwork does in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ...hypernoise_core.adapter import load_adapter
from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.families import family_of_pipeline
from ...hypernoise_core.generate import encode_prompts
from ...hypernoise_core.hypernetwork import NoiseHypernetwork
from ...hypernoise_core.reno import RenoConfig, RenoResult
from ...hypernoise_core.rewards import Ensemble, load_rewards, parse_weights
from ...hypernoise_core.seeds import check_seeds
from ..embedded_models import default_rewards
from ..pipelines import load_pipeline
from ..progress import progress_bar
from ..prompt_files import read_prompts
from ..reno_search import search_noise
from ..report.figures import side_by_side, write_png
from ..report.page import write_json
from ..writable import check_folder
from .settings import RenoCommand


def run(settings: RenoCommand) -> None:
    """Optimises the noise for each prompt, and prints the path of the grid."""
    check_folder(settings.out, "--out")
    prompts = read_prompts(settings.prompts, settings.prompts_file)
    check_seeds(range(settings.seed, settings.seed + len(prompts)))
    weights = parse_weights(settings.rewards or default_rewards(settings.model))
    grid = write_search(
        prompts,
        load_pipeline(settings.model),
        load_rewards(weights, settings.rewards_folder),
        settings.search,
        hypernetwork=None if settings.adapter is None else load_adapter(settings.adapter),
        seed=settings.seed,
        size=settings.size,
        batch_size=settings.batch_size,
        out=settings.out,
    )
    print(grid.resolve())


def write_search(
    prompts: list[str],
    pipeline: Any,
    rewards: Ensemble,
    config: RenoConfig,
    *,
    hypernetwork: NoiseHypernetwork | None,
    seed: int,
    size: tuple[int, int] | None,
    batch_size: int,
    out: Path,
) -> Path:
    """Writes `NNN_start.png`, `NNN_reno.png`, a grid of both, `noise.safetensors` and `reno.json`.

    Args:
        hypernetwork: the search starts from its noise; None: from plain noise.
        seed: seed of the first image; the following images use the following seeds.
        size: height and width in pixels; None: the generator's default.

    Returns:
        The path of the grid.

    Raises:
        ValueError: the generator cannot make images of that size.
    """
    family = family_of_pipeline(pipeline)
    height, width = size or (family.default_size(pipeline),) * 2
    family.latent_shape(pipeline, height, width)  # raises before the prompts are encoded
    conditioning = encode_prompts(pipeline, prompts, batch_size=batch_size)
    seeds = range(seed, seed + len(prompts))
    starts: list[Tensor] = []
    results: list[RenoResult] = []
    for first in range(0, len(prompts), batch_size):
        rows = slice(first, first + batch_size)
        with progress_bar(total=config.iterations, desc="searching", unit="iteration") as bar:

            def on_step(step: int, images: Tensor, scores: Tensor, bar: Any = bar) -> None:
                starts.append(images.cpu()) if step == 0 else bar.update()
                bar.set_postfix_str(f"reward {scores.mean():.3f}")

            result = search_noise(
                pipeline,
                rewards,
                prompts[rows],
                {name: tensor[rows] for name, tensor in conditioning.items()},
                seeds=seeds[rows],
                size=(height, width),
                config=config,
                hypernetwork=hypernetwork,
                on_step=on_step,
            )
        results.append(result)
    return _write(out, prompts, list(seeds), torch.cat(starts), results, rewards)


def _write(
    out: Path,
    prompts: list[str],
    seeds: list[int],
    starts: Tensor,
    results: list[RenoResult],
    rewards: Ensemble,
) -> Path:
    images = torch.cat([result.images for result in results]).cpu()
    out.mkdir(parents=True, exist_ok=True)
    for i, (start, image) in enumerate(zip(starts, images, strict=True)):
        write_png(out / f"{i:03d}_start.png", start)
        write_png(out / f"{i:03d}_reno.png", image)
    side_by_side(out / "grid.png", prompts, {"start": starts, "reno": images})
    noise = torch.cat([result.noise for result in results]).cpu()
    write_atomically(out / "noise.safetensors", serialise({"noise": noise.contiguous()}))
    histories = [row for result in results for row in result.history.T.tolist()]
    scores = torch.cat([result.scores for result in results]).tolist()
    entries = [
        {"prompt": prompt, "seed": seed, "start": history[0], "reno": score, "history": history}
        for prompt, seed, history, score in zip(prompts, seeds, histories, scores, strict=True)
    ]
    write_json(out / "reno.json", {"rewards": rewards.weights, "images": entries})
    return out / "grid.png"
