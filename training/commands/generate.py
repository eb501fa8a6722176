"""`hypernoise generate`: images with and without the hypernetwork, from the same noise."""

from pathlib import Path

from ...hypernoise_core.adapter import load_adapter
from ...hypernoise_core.generate import encode_prompts, generate
from ...hypernoise_core.seeds import check_seeds
from ..embedded_models import EMBEDDED, EMBEDDED_ADAPTER
from ..pipelines import load_pipeline
from ..prompt_files import read_prompts
from ..report.figures import side_by_side, write_png
from ..writable import check_folder
from .settings import GenerateConfig


def run(config: GenerateConfig) -> None:
    """Writes the images and prints the path of the grid."""
    check_folder(config.out, "--out")
    print(write_comparison(config, read_prompts(config.prompts, config.prompts_file)).resolve())


def write_comparison(config: GenerateConfig, prompts: list[str]) -> Path:
    """Writes `NNN_base.png` and `NNN_hypernoise.png` for each image, and `grid.png`.

    Args:
        prompts: all prompts, including those of the file.

    Returns:
        The path of the grid.

    Raises:
        ValueError: no adapter is given for a model without an embedded one, the adapter does not
            fit, or a seed is out of range.
        FileNotFoundError: there is no such model or adapter.
    """
    adapter = config.adapter
    if adapter is None:
        if config.model not in EMBEDDED:
            raise ValueError(f"no adapter for {config.model}: give one with --adapter FILE")
        adapter = EMBEDDED_ADAPTER
    texts = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    seeds = range(config.seed, config.seed + len(texts))
    check_seeds(seeds)
    hypernetwork = load_adapter(adapter, alpha=config.alpha)
    pipeline = load_pipeline(config.model)
    options = {
        "steps": config.steps,
        "seeds": seeds,
        "height": config.height,
        "width": config.width,
        "batch_size": config.batch_size,
        "conditioning": encode_prompts(pipeline, texts, batch_size=config.batch_size),
    }
    ours = generate(pipeline, texts, hypernetwork, strength=config.strength, **options)
    rows = {
        "base": generate(pipeline, texts, None, **options).images,
        "hypernoise": ours.images,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    for name, images in rows.items():
        for i, image in enumerate(images):
            write_png(config.out / f"{i:03d}_{name}.png", image)
    side_by_side(config.out / "grid.png", texts, rows)
    return config.out / "grid.png"
