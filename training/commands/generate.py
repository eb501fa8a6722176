"""`hypernoise generate`: images with and without the hypernetwork, from the same noise."""

from pathlib import Path

from ...hypernoise_core.adapter import load_adapter
from ...hypernoise_core.generate import encode_prompts, generate
from ...hypernoise_core.seeds import check_seeds
from ..embedded import EMBEDDED, EMBEDDED_ADAPTER
from ..pipelines import load_pipeline
from ..report.figures import side_by_side, write_png


def write_comparison(
    prompts: list[str],
    *,
    model: str,
    adapter: Path | None,
    alpha: float | None,
    steps: int,
    seed: int,
    images_per_prompt: int,
    strength: float,
    height: int | None,
    width: int | None,
    batch_size: int,
    out: Path,
) -> Path:
    """Writes `NNN_base.png`, `NNN_hypernoise.png` for each image and `grid.png`; returns the grid.

    Raises:
        ValueError: the adapter is missing where the model has no embedded one, or does not fit, or
            a seed is out of range.
        FileNotFoundError: there is no such model or adapter.
    """
    if adapter is None:
        if model not in EMBEDDED:
            raise ValueError(f"which hypernetwork for {model}? Give --adapter FILE")
        adapter = EMBEDDED_ADAPTER
    if images_per_prompt < 1:
        raise ValueError(f"--images-per-prompt must be at least 1, not {images_per_prompt}")
    texts = [prompt for prompt in prompts for _ in range(images_per_prompt)]
    seeds = range(seed, seed + len(texts))
    check_seeds(seeds)
    hypernetwork = load_adapter(adapter, alpha=alpha)
    pipeline = load_pipeline(model)
    conditioning = encode_prompts(pipeline, texts, batch_size=batch_size)
    options = {
        "steps": steps,
        "seeds": seeds,
        "height": height,
        "width": width,
        "batch_size": batch_size,
        "conditioning": conditioning,
    }
    rows = {
        "base": generate(pipeline, texts, None, **options).images,
        "hypernoise": generate(pipeline, texts, hypernetwork, strength=strength, **options).images,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, images in rows.items():
        for i, image in enumerate(images):
            write_png(out / f"{i:03d}_{name}.png", image)
    side_by_side(out / "grid.png", texts, rows)
    return out / "grid.png"
