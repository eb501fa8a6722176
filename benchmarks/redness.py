"""The paper's redness experiment on tiny-sprint: redness against prompt fidelity.

    .venv/bin/python benchmarks/redness.py [--out out/redness]

Trains a noise hypernetwork and a LoRA on the generator for the same reward, redness. Plots the tiny
world's checker, which neither is trained on, against the redness on held-out captions, as means of
three runs each. Runs that are already finished are not repeated.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hypernoise.hypernoise_core.atomic_file import write_atomically
from hypernoise.training.report.figures import as_png
from hypernoise.training.tracking import read

SEEDS = (0, 1, 2)
RUNS = {
    "noise hypernetwork": [],
    "fine-tuned generator": ["--train_type", "finetune", "--image_grad_quantile", "1"]
    + ["--lr", "1e-4", "--schedule", "constant", "--steps", "60", "--log_every", "4"],
}
COLORS = {"noise hypernetwork": "#1f6f43", "fine-tuned generator": "#b3372f"}
Curve = list[tuple[float, float]]  # redness and checker


def train(folder: Path, arguments: list[str], seed: int) -> None:
    command = [sys.executable, "-m", "hypernoise.training.cli", "train", "--config", "tiny-redness"]
    command += ["--tracker", "none", "--save_dir", str(folder), "--resume", "--seed", str(seed)]
    subprocess.run([*command, *arguments], check=True)


def curve(folders: list[Path]) -> Curve:
    """From the plain generator to the end of training, one point per evaluation; mean of runs."""
    return np.mean([_curve(folder) for folder in folders], axis=0).tolist()


def _curve(folder: Path) -> Curve:
    lines = [line for line in read(folder) if line["kind"] == "evaluation"]
    start = (lines[0]["evaluation/redness_base"], lines[0]["watched/checker_base"])
    return [start, *((line["evaluation/redness"], line["watched/checker"]) for line in lines)]


def checker_at(points: Curve, redness: float) -> float:
    """The checker score where a curve first reaches a redness, interpolated linearly."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= redness <= x1:
            return float(np.interp(redness, [x0, x1], [y0, y1]))
    raise ValueError(f"a redness of {redness:.3f} is never reached")


def draw(path: Path, curves: dict[str, Curve]) -> None:
    figure = Figure(figsize=(9.5, 3.8), dpi=120)
    whole, near = figure.subplots(1, 2)
    for name, points in curves.items():
        x, y = zip(*points, strict=True)
        for axis in (whole, near):
            axis.plot(x, [100 * v for v in y], marker="o", ms=3.5, color=COLORS[name], label=name)
    base, reached = curves["noise hypernetwork"][0], curves["noise hypernetwork"][-1]
    near.set_xlim(base[0] - 0.01, 2.2 * reached[0])
    near.set_ylim(100 * base[1] - 25, 100 * base[1] + 6)
    for axis in (whole, near):
        axis.axhline(100 * base[1], color="#888", lw=0.8, ls="--")
        axis.set_xlabel("redness of the images")
        axis.set_ylabel("images that show their caption, %")
        axis.grid(alpha=0.3)
    near.set_title("the same, near the plain generator", fontsize=9)
    whole.set_title("dashed: the plain generator", fontsize=9)
    whole.legend(fontsize=8)
    figure.tight_layout()
    write_atomically(path, as_png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/redness"))
    out = parser.parse_args().out
    curves = {}
    for name, arguments in RUNS.items():
        folders = [out / f"{name.replace(' ', '_')}_{seed}" for seed in SEEDS]
        for folder, seed in zip(folders, SEEDS, strict=True):
            train(folder, arguments, seed)
        curves[name] = curve(folders)
    draw(out / "redness.png", curves)
    ours, theirs = curves.values()
    (base_red, base_checker), (redness, checker) = ours[0], ours[-1]
    print(f"plain generator: redness {base_red:.3f}, checker {base_checker:.3f}")
    print(f"noise hypernetwork: redness {redness:.3f}, checker {checker:.3f}")
    print(f"fine-tuned to that redness: checker {checker_at(theirs, redness):.3f}")
    print(f"fine-tuned to the end: redness {theirs[-1][0]:.3f}, checker {theirs[-1][1]:.3f}")
    print((out / "redness.png").resolve())


if __name__ == "__main__":
    main()
