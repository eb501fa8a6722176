"""Benefit of a warm start for ReNO: reward and checker by iteration, from both kinds of noise.

    .venv/bin/python benchmarks/warm_start.py [--adapter ADAPTER...] [--out out/warm_start]

ReNO keeps the best image found, so its reward never falls; the tiny world's checker, which it does
not optimise, shows how much of the gain is real. Held-out captions, means over the adapters.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.atomic_file import write_atomically
from hypernoise.hypernoise_core.generate import encode_prompts
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.reno import RenoConfig
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation.methods import Task, search
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.prompts import tiny_world_captions
from hypernoise.training.report.figures import as_png
from hypernoise.training.tiny_world.checker import is_correct

FIRST_SEED = 800_000_000
PLAIN, WARM = "from plain noise", "from HyperNoise"
COLORS = {PLAIN: "#b3372f", WARM: "#1f6f43"}
SHOWN = (0, 1, 2, 3, 5, 10, 20, 30, 40, 50)


def curve(
    task: Task, captions: list, hypernetwork: NoiseHypernetwork | None, iterations: int
) -> np.ndarray:
    """Mean reward of the best images after 0, 1, ... iterations, and the share of them that the
    checker accepts: (iterations + 1, 2)."""
    sums = np.zeros((iterations + 1, 2))
    left = iter(captions)
    for batch in task.batches():
        shown = [next(left) for _ in batch.prompts]

        def add(step, images, scores, shown=shown):
            correct = [
                is_correct(image, caption) for image, caption in zip(images, shown, strict=True)
            ]
            sums[step] += float(scores.sum()), sum(correct)

        search(batch, RenoConfig(iterations=iterations), hypernetwork, add)
    return sums / len(task)


def first(values: np.ndarray, least: float) -> str:
    """The index of the first value that is at least `least`."""
    there = np.flatnonzero(values >= least)
    return str(there[0]) if len(there) else f"more than {len(values) - 1}"


def draw(path: Path, curves: dict[str, np.ndarray]) -> None:
    figure = Figure(figsize=(9.5, 3.6), dpi=120)
    for column, (axis, title) in enumerate(
        zip(figure.subplots(1, 2), ("reward", "images that show their caption, %"), strict=True)
    ):
        for name, points in curves.items():
            values = points[:, column] * (100 if column else 1)
            axis.plot(values, marker="o", ms=3, color=COLORS[name], label=f"ReNO {name}")
        axis.axhline(
            curves[PLAIN][-1, column] * (100 if column else 1), color="#888", lw=0.8, ls="--"
        )
        axis.set_xlabel("ReNO iterations")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    write_atomically(path, as_png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, nargs="+", default=[EMBEDDED_ADAPTER])
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--per_category", type=int, default=16, help="captions of each category")
    parser.add_argument("--out", type=Path, default=Path("out/warm_start"))
    options = parser.parse_args()
    captions = tiny_world_captions(held_out=True, per_category=options.per_category)
    prompts = [caption.text for caption in captions]
    pipeline = load_pipeline("tiny-sprint")
    task = Task(
        pipeline=pipeline,
        rewards=load_rewards({"tiny-preference": 1.0}),
        prompts=prompts,
        conditioning=encode_prompts(pipeline, prompts),
        seeds=[FIRST_SEED + i for i in range(len(prompts))],
        size=(64, 64),
        batch_size=16,
    )
    curves = {PLAIN: curve(task, captions, None, options.iterations)}
    adapters = [load_adapter(path) for path in options.adapter]
    curves[WARM] = np.mean(
        [curve(task, captions, adapter, options.iterations) for adapter in adapters], axis=0
    )
    print(f"{'iterations':>10}" + "".join(f"{name:>28}" for name in curves))
    for step in [step for step in SHOWN if step <= options.iterations]:
        texts = [
            f"{reward:.2f}, checker {checker:.3f}"
            for reward, checker in (points[step] for points in curves.values())
        ]
        print(f"{step:10}" + "".join(f"{text:>28}" for text in texts))
    plain, warm = curves[PLAIN][:, 0], curves[WARM][:, 0]
    few = min(5, options.iterations)
    print(
        f"Reward after {few} iterations from HyperNoise: plain noise needs "
        f"{first(plain, warm[few])} iterations."
    )
    print(f"Final reward from plain noise: HyperNoise needs {first(warm, plain[-1])} iterations.")
    draw(options.out / "warm_start.png", curves)
    print(options.out / "warm_start.png")


if __name__ == "__main__":
    main()
