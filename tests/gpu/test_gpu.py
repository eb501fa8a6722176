"""What only a CUDA GPU can show. `make gpu` runs it; without a GPU it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.tests.comfyui.run_inside import run_inside
from hypernoise.tests.core.conftest import build_tiny
from hypernoise.tests.trust.state import State, count_hooks

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [family.name for family in FAMILIES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_adapter_on_the_cpu_serves_a_network_on_cuda(name, dtype):
    here, there = build_tiny(name), build_tiny(name)
    there.pipeline.to("cuda", dtype)
    f = here.hypernetwork()
    conditioning = {name: tensor.cuda() for name, tensor in here.conditioning.items()}
    with torch.no_grad():
        got = f(there.network, here.noise.cuda(), conditioning).cpu()
        expected = f(here.network, here.noise, here.conditioning)
    error = (got - expected).norm() / expected.norm()
    assert error.item() < max(1e-3, 30 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_really_runs_out_leaves_no_trace(name):
    tiny = build_tiny(name)
    tiny.pipeline.to("cuda")
    f = tiny.hypernetwork().cuda().requires_grad_(False)
    count = 1 << 17
    noise = tiny.noise[:1].cuda().expand(count, -1, -1, -1)
    conditioning = {
        n: t[:1].cuda().expand(count, *t.shape[1:]) for n, t in tiny.conditioning.items()
    }
    with torch.no_grad():  # libraries take their working memory at the first pass
        f(tiny.network, noise[:1], {name: t[:1] for name, t in conditioning.items()})
    state = State.of(tiny.network)
    torch.cuda.empty_cache()
    allocated = torch.cuda.memory_allocated()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e9) / total)
    try:
        with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
            f(tiny.network, noise, conditioning)
        state.check(tiny.network)
        assert count_hooks(tiny.network) == 0
        assert torch.cuda.memory_allocated() == allocated
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def train(folder: Path, name: str, *arguments: str) -> dict[str, torch.Tensor]:
    settings = ("--model", "tiny-sprint", "--rewards", "redness=1.0", "--batch_size", "4",
                "--steps", "6", "--save_every", "3", "--log_every", "0", "--tracker", "none",
                "--save_dir", name, "--cache_dir", "cache", "--task", "prompts.txt")  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "hypernoise.training.cli", "train", *settings, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    file = "lora" if "finetune" in arguments else "hypernoise"
    return load_file(folder / name / f"{file}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.txt").write_text("a red circle\ntwo blue squares\na triangle\na square\n")
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_the_gpu_raises_the_reward(folder, precision):
    train(folder, f"run-{precision}", "--precision", precision, "--steps", "60", "--lr", "1e-3")
    lines = (folder / f"run-{precision}" / "metrics.jsonl").read_text().splitlines()
    rewards = [line["redness"] for line in map(json.loads, lines) if "redness" in line]
    assert sum(rewards[-10:]) > sum(rewards[:10])


def test_a_fine_tune_on_the_gpu_ends_with_a_lora(folder):
    assert train(folder, "finetune", "--train_type", "finetune")


def test_the_same_seed_twice_on_the_gpu(folder):
    """Bits may differ on a GPU, the adapters hardly; docs/reliability.md says so."""
    first, second = train(folder, "first"), train(folder, "second")
    equal = all(torch.equal(first[name], second[name]) for name in first)
    worst = max(((first[n] - second[n]).norm() / first[n].norm()).item() for n in first)
    print(f"\nsame seed twice: {'the same bits' if equal else f'differs by up to {worst:.1e}'}")
    assert worst < 1e-2


def test_a_resumed_run_on_the_gpu_is_the_uninterrupted_one(folder):
    whole = train(folder, "whole")
    train(folder, "parts", "--steps", "3")
    resumed = train(folder, "parts", "--resume")
    worst = max(((whole[n] - resumed[n]).norm() / whole[n].norm()).item() for n in whole)
    print(f"\nresumed: differs by up to {worst:.1e}")
    assert worst < 1e-2


@pytest.mark.parametrize("tests", ["tests/comfyui/inside", "tests/trust/inside/test_faults.py"])
def test_inside_comfyui_on_the_gpu(tests, tmp_path):
    run_inside(REPOSITORY / tests, tmp_path)
