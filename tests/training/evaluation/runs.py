"""What tests of the evaluation run, and what they look at in its folders."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.generator_lora import GeneratorLora
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.evaluation import methods
from hypernoise.training.evaluation.layouts import write_layout
from hypernoise.training.evaluation.settings import EvaluationConfig

PROMPTS = ["a red circle", "two blue squares", "a white triangle above a green square"]


SMALL_RUN = {
    "max_prompts": 8,
    "seeds": 2,
    "steps": (1, 2),
    "search_prompts": 2,
    "multi_step_search_prompts": 1,
    "batch_size": 4,
    "kl_noises": 1,
}


def new_lora(task: methods.Task, std: float) -> GeneratorLora:
    lora = GeneratorLora.initialise(task.network, "sana_sprint", rank=2, alpha=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in lora.branches.values():
            branch.up.normal_(std=std, generator=generator)
    return lora


def answering(tmp_path: Path, body: str) -> str:
    script = tmp_path / "answer.py"
    script.write_text(f"import json, sys\nlines = [json.loads(l) for l in sys.stdin]\n{body}")
    return f"{sys.executable} {script}"


def as_flags(settings: dict) -> list[str]:
    flags = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name}", *map(str, values)]
    return flags


def ablation_of(folder: Path) -> tuple[str, ...]:
    return f"rank_16={EMBEDDED_ADAPTER}", f"lora_1={folder / 'lora.safetensors'}"


def settings_of(folder: Path, **changes) -> EvaluationConfig:
    settings = {
        "lora": (folder / "lora.safetensors",),
        "ablation": ablation_of(folder),
        "cache_dir": folder / "cache",
        "out": folder / "out",
    }
    return EvaluationConfig(**(SMALL_RUN | settings | changes))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "out" / "report.json").read_text())


def images_of(checkouts, layout: str, out: Path, **changes) -> Path:
    """The folder of base."""
    settings = {"methods": ("base",), "seeds": 4, "cache_dir": out / "cache"} | changes
    config = EvaluationConfig(layout=layout, data_dir=checkouts[layout], out=out, **settings)
    return write_layout(config)[0]


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255


def change_weights(model: Path) -> None:
    """In place, as a download of another version does it."""
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: t * 1.1 if t.ndim == 2 else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
