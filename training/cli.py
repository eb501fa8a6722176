"""The command line: `hypernoise demo`, `hypernoise generate`, `hypernoise info`."""

import json
import sys
from pathlib import Path


def demo(
    out: Path = Path("out/demo"),
    seed: int = 0,
    steps: int = 800,
    max_seconds: float = 290.0,
    per_category: int = 80,
) -> None:
    """Train a noise hypernetwork on the embedded generator and evaluate it, in minutes.

    Args:
        out: Folder for the report, the pictures and the adapter.
        seed: Seed of the training run.
        steps: Training steps.
        max_seconds: Training ends after this many seconds, whatever the steps.
        per_category: Held-out captions evaluated in each of the six categories.
    """
    from .config import TrainingConfig
    from .demo import run_demo

    config = TrainingConfig(seed=seed, steps=steps, max_seconds=max_seconds)
    numbers = run_demo(out, config, per_category)
    for name, entry in numbers["methods"].items():
        print(
            f"{name:>12}: checker {entry['checker_mean']:.3f}, reward {entry['reward_mean']:.2f}, "
            f"{entry['seconds_per_image']:.4f} s per image"
        )
    files = ("report.html", "report.json", "side_by_side.png", "training_curves.png")
    for name in (*files, "tiny-hypernoise.safetensors"):
        print((out / name).resolve())


def generate(
    prompts: tuple[str, ...] = (),
    prompts_file: Path | None = None,
    model: str = "tiny-sprint",
    adapter: Path | None = None,
    steps: int = 1,
    seed: int = 0,
    images_per_prompt: int = 1,
    strength: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    out: Path = Path("out/images"),
) -> None:
    """Write images of each prompt with and without the hypernetwork, and a side-by-side grid.

    Args:
        prompts: One or more prompts.
        prompts_file: A text file with one prompt a line, instead of or beside --prompts.
        model: tiny-sprint, a diffusers folder, or a repository in the Hugging Face cache.
        adapter: The hypernetwork: a .safetensors file or a peft folder. Default: the embedded
            one for tiny-sprint.
        steps: Generator steps.
        seed: Seed of the first image; the next ones count up.
        images_per_prompt: Images of each prompt, from different noises.
        strength: Scales the hypernetwork's output; 0 is the base model.
        height: In pixels; default: the model's own.
        width: In pixels; default: the model's own.
        batch_size: Images generated at a time.
        out: Folder for the images; files of the same name are replaced.
    """
    from .inference import read_prompts, write_comparison

    grid = write_comparison(
        read_prompts(prompts, prompts_file),
        model=model,
        adapter=adapter,
        steps=steps,
        seed=seed,
        images_per_prompt=images_per_prompt,
        strength=strength,
        height=height,
        width=width,
        batch_size=batch_size,
        out=out,
    )
    print(grid.resolve())


def info(adapter: Path) -> None:
    """Print what an adapter file says about itself.

    Args:
        adapter: A .safetensors file or a peft folder.
    """
    from dataclasses import asdict

    from ..hypernoise_core.adapter import load_adapter

    hypernetwork = load_adapter(adapter)
    weights = sum(parameter.numel() for parameter in hypernetwork.parameters())
    facts = {**asdict(hypernetwork.metadata), "layers": len(hypernetwork.layer_names)}
    print(json.dumps({**facts, "weights": weights}, indent=2, default=str))


def main() -> None:
    """Runs the command that sys.argv names; bad input ends in one line and exit code 2."""
    try:
        import tyro
    except ImportError as error:
        print('hypernoise: tyro is missing: pip install "hypernoise[train]"', file=sys.stderr)
        raise SystemExit(2) from error
    commands = {"demo": demo, "generate": generate, "info": info}
    config = (tyro.conf.PositionalRequiredArgs,)
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="hypernoise", config=config)
    except (ValueError, OSError, ImportError) as error:
        print(f"hypernoise: {error}", file=sys.stderr)
        raise SystemExit(2) from error
