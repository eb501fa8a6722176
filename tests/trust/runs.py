"""Training runs that are cheap to start, and so can be killed often.

What a run does wrong is Python that it executes first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hypernoise.tests import warm
from hypernoise.training.checkpoints import Checkpoints
from hypernoise.training.tracking import read

PROMPTS = [
    "a red circle",
    "two blue squares",
    "a white triangle above a green square",
    "a purple square",
    "a green circle and a red square",
    "three yellow triangles",
    "a blue circle",
    "a yellow square left of a red circle",
    "a triangle",
]
SETTINGS = {
    "model": "tiny-sprint",
    "precision": "float32",
    "lora_rank": 1,
    "optim": "adamw",
    "schedule": "cosine",
    "warmup_steps": 1,
    "batch_size": 2,
    "image_grad_quantile": 0.5,
    "steps": 4,
    "ema_decay": 0.5,
    "eval_prompts": 2,
    "log_every": 2,
    "save_every": 1,
    "tracker": "none",
}


LIGHT = """
import io
from PIL import Image
from hypernoise.hypernoise_core.atomic_file import write_atomically
from hypernoise.training.validation import held_out
from hypernoise.training.report import figures
from hypernoise.training.commands.train import Run
Image.new("RGB", (8, 8)).save(jpeg := io.BytesIO(), "jpeg")
figures.curves = figures.gain_curves = figures.two_gains = lambda *_: None
figures.as_png = lambda _: b"a picture" * 1000
held_out.side_by_side = lambda path, *_, **__: write_atomically(path, jpeg.getvalue())
Run._divergence = lambda run: {}
"""
"""Run first, it makes an evaluation quick: nothing is drawn, and the KL is not estimated."""


def write_task(folder: Path, **changes: object) -> Path:
    """A folder with config.toml and prompts.txt, and what runs in it share: cache."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    settings = SETTINGS | {"task": str(folder / "prompts.txt")} | changes
    settings.setdefault("cache_dir", str(folder / "cache"))
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    rewards = ["[rewards]", "redness = 1.0", "tiny-preference = 0.1"]
    (folder / "config.toml").write_text("\n".join([*lines, *rewards]))
    return folder


@dataclass
class Finished:
    """How a run ended."""

    returncode: int
    """As subprocess gives it: minus the number of the signal that ended it."""
    errors: str
    """What it wrote to stderr."""

    @property
    def message(self) -> str:
        """The line of the command about its error; there has to be one, and no traceback."""
        assert "Traceback" not in self.errors, self.errors
        lines = [line for line in self.errors.splitlines() if line.startswith("hypernoise: ")]
        assert len(lines) == 1, self.errors
        return lines[0]


@dataclass
class Started:
    """A run under way."""

    process: warm.Process

    def poll(self) -> int | None:
        return self.process.poll()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = warm.SECONDS) -> Finished:
        """Its end; it is killed, and this fails, where it does not end in time."""
        return Finished(self.process.wait(seconds), self.errors())

    def wait_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.poll() is None, self.errors()
            time.sleep(0.002)

    def errors(self) -> str:
        return self.process.stderr


def start(cwd: Path, *arguments: object, first: str = "", **variables: str) -> Started:
    """Starts `hypernoise train --config config.toml` in a folder of `write_task`.

    Args:
        first: Python that the run executes before anything else.
        variables: of its environment.
    """
    code = f"{LIGHT}\n{first}\n{warm.HYPERNOISE}"
    train = ["train", "--config", "config.toml", *arguments]
    return Started(warm.start(code, *train, cwd=cwd, **variables))


def train(cwd: Path, *arguments: object, **options: Any) -> Finished:
    """A run from its start to its end."""
    return start(cwd, *arguments, **options).wait()


def environment(**variables: str) -> dict[str, str]:
    fixed = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return {**os.environ, **fixed, **variables}


def fresh(cwd: Path, *arguments: object, log: Path, **variables: str) -> subprocess.Popen:
    """A run in a process of its own, not a fork."""
    code = f"{LIGHT}from hypernoise.training.cli import main; main()"
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", *map(str, arguments)],
            cwd=cwd,
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


# What a run leaves


def record(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read(run)]
    return [{k: repr(v) for k, v in line.items()} for line in lines]  # NaN equals NaN there


def state(run: Path) -> dict[str, Any]:
    """The newest checkpoint without what the clock decides."""
    loaded = Checkpoints(run / "checkpoints", 1).load_newest()
    return {name: value for name, value in loaded.items() if name != "seconds"}


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def files(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


def differences(run: Path, reference: Path, *, same_files: bool = True) -> list[str]:
    """What is not as in the run that nothing happened to; empty where all is the same.

    Args:
        same_files: also compare which files there are, checkpoints among them.
    """
    found = []
    if same_files and files(run) != files(reference):
        found.append(f"files {sorted(set(files(run)) ^ set(files(reference)))}")
    for adapter in sorted(reference.glob("**/*.safetensors" if same_files else "*.safetensors")):
        own = run / adapter.relative_to(reference)
        if not own.is_file() or own.read_bytes() != adapter.read_bytes():
            found.append(f"bytes of {adapter.relative_to(reference)}")
    if record(run) != record(reference):
        found.append("metrics.jsonl")
    if not same(state(run), state(reference)):
        found.append("the newest checkpoint")
    return found
