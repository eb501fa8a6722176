"""`hypernoise train` as people run it: its folder, and every way in which a run can end early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.tests import warm
from hypernoise.training.checkpoints import Checkpoints
from hypernoise.training.commands import train as run
from hypernoise.training.config import TrainingConfig
from hypernoise.training.embedded_models import ASSETS
from hypernoise.training.parts import choose_prompts
from hypernoise.training.settings import load_settings
from hypernoise.training.tracking import read

SETTINGS = {
    "model": "tiny-sprint",
    "precision": "float32",
    "lora_rank": 2,
    "optim": "adamw",
    "schedule": "cosine",
    "warmup_steps": 1,
    "batch_size": 4,
    "image_grad_quantile": 0.5,
    "steps": 8,
    "ema_decay": 0.5,
    "eval_prompts": 4,
    "log_every": 4,
    "save_every": 1,
    "tracker": "none",
}
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
    "four green circles",
    "two white squares",
    "a red square",
    "a blue triangle",
    "a purple circle",
    "two yellow circles",
    "three red triangles",
    "a square",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a config, prompts, and a cache that all runs share."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    settings = SETTINGS | {"task": "prompts.txt", "cache_dir": "cache"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (folder / "config.toml").write_text(
        "\n".join([*lines, "[rewards]", "redness = 1.0", "tiny-preference = 0.1"])
    )
    return folder


TRAIN = ("train", "--config", "config.toml")


def train(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return warm.hypernoise(*TRAIN, *arguments, cwd=folder, **options)


def train_below_torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Two processes, as people start them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "hypernoise.training.cli", *TRAIN, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def start(folder: Path, *arguments: str) -> warm.Process:
    return warm.start(warm.HYPERNOISE, *TRAIN, *arguments, cwd=folder)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step_"))


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hypernoise.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    result = train(folder, "--save_dir", "uninterrupted")
    assert result.returncode == 0, result.stderr
    return folder / "uninterrupted"


def test_a_run_leaves_adapter_metrics_pictures_and_a_report(uninterrupted):
    adapter = load_adapter(uninterrupted / "hypernoise.safetensors")
    assert adapter.metadata.training_steps == 8
    assert adapter.metadata.rewards == {"redness": 1.0, "tiny-preference": 0.1}
    lines = read(uninterrupted)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 9))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [4, 8]
    best = max(evaluations, key=lambda line: line["evaluation/total"])
    assert load_adapter(uninterrupted / "best.safetensors").metadata.training_steps == best["step"]
    expected = {"evaluation/redness", "evaluation/total_gain_low", "watched/checker", "kl/total"}
    assert expected < set(evaluations[0])
    checkpoints = Checkpoints(uninterrupted / "checkpoints", 3).paths()
    assert [path.name for path in checkpoints] == [f"step_{n:09d}.pt" for n in (6, 7, 8)]
    adapters = [load_adapter(path.with_suffix(".safetensors")) for path in checkpoints]
    assert [adapter.metadata.training_steps for adapter in adapters] == [6, 7, 8]
    assert len(list((uninterrupted / "checkpoints").iterdir())) == 6
    page = (uninterrupted / "report.html").read_text()
    assert "redness" in page and "://" not in page
    assert len(list((uninterrupted / "evaluations").glob("*.jpg"))) == 2


def test_a_finished_run_is_not_overwritten(uninterrupted, folder):
    result = train(folder, "--save_dir", "uninterrupted")
    assert result.returncode == 2 and "--resume" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_settings_cannot_resume_a_run(uninterrupted, folder):
    result = train(folder, "--save_dir", "uninterrupted", "--resume", "--lr", "0.5")
    assert result.returncode == 2 and "lr was 0.001 and is 0.5" in result.stderr


def test_a_run_that_goes_on_knows_its_evaluations_and_the_best(uninterrupted, folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree(uninterrupted, folder / "copy")
    config = replace(load_settings(TrainingConfig, "config.toml"), save_dir=folder / "copy")
    resumed = run.start(config, resume=True)
    totals = {row["step"]: row["evaluation/total"] for row in resumed.evaluations}
    assert list(totals) == [4, 8] and resumed.best.reward == max(totals.values())


def test_a_run_goes_on_with_the_same_weights_wherever_they_lie_and_with_no_others(
    folder, tmp_path, capsys
):
    model = Path(shutil.copytree(ASSETS / "tiny-sprint", tmp_path / "model"))
    settings = SETTINGS | {"model": str(model), "steps": 1, "log_every": 0, "tracker": "none"}
    settings |= {"task": str(folder / "prompts.txt"), "cache_dir": folder / "cache"}
    config = TrainingConfig(**settings, rewards={"redness": 1.0}, save_dir=tmp_path / "run")
    run.start(config).train()
    more = replace(config, steps=2)
    for path in model.rglob("*.safetensors"):
        os.utime(path)  # as a copy from another disk
    run.start(more, resume=True).train()
    told = capsys.readouterr().err
    assert "the cosine schedule was planned for 1 updates and is now for 2" in told
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="other settings: model_content was .* and is"):
        run.start(more, resume=True)


def test_held_out_prompts_are_not_trained_on_and_a_quarter_of_few_at_most(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:8]))
    config = TrainingConfig(task=str(tmp_path / "prompts.txt"), eval_prompts=32)
    prompts = choose_prompts(config)
    assert prompts.held_out == [PROMPTS[0], PROMPTS[4]]
    assert prompts.training == [*PROMPTS[1:4], *PROMPTS[5:8]]
    few = choose_prompts(replace(config, eval_prompts=1))
    assert (few.held_out, few.training) == (PROMPTS[:1], PROMPTS[1:8])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_ends_the_run(uninterrupted, folder, number):
    run = folder / number.name
    settings = ["--save_dir", number.name, "--log_every", "0"]
    process = start(folder, *settings, "--save_every", "1000")
    while not (run / "metrics.jsonl").is_file() or not read(run):
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == 128 + number
    errors = process.stderr
    assert f"stopped by {number.name}" in errors and "Traceback" not in errors
    step = Checkpoints(run / "checkpoints", 1).load_newest()["step"]
    assert 1 <= step < 8 and read(run)[-1]["step"] == step
    result = train(folder, *settings, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same(final_weights(run), final_weights(uninterrupted))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "of_torchrun"),
    [
        ([], True),
        (["--shard"], False),
        (["--shard", "--use_checkpoint", "--log_every", "0"], False),
    ],
)
def test_two_processes_train_as_one(uninterrupted, folder, options, of_torchrun):
    """Batches of 4 images and of one over 2 processes, per-image clipping and all."""
    name = "two" + "".join(options)
    settings = ["--save_dir", name, *options]
    if of_torchrun:
        result = train_below_torchrun(folder, *settings)
    else:
        result = train(folder, *settings, processes=2)
    assert result.returncode == 0, result.stderr
    alone, together = (
        [line for line in read(folder / run) if line["kind"] == "train"]
        for run in ("uninterrupted", name)
    )
    assert [line["images"] for line in together] == [line["images"] for line in alone]
    for metric in ("loss", "redness", "tiny-preference", "penalty", "grad_norm"):
        expected = [line[metric] for line in alone]
        got = [line[metric] for line in together]
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6), metric
    a, b = final_weights(folder / name), final_weights(uninterrupted)
    error = sum(float((a[k] - b[k]).square().sum()) for k in b) ** 0.5
    assert error < 1e-3 * sum(float(b[k].square().sum()) for k in b) ** 0.5
    assert len(list((folder / name).glob("metrics*"))) == 1


def small_disk(path: Path, kilobytes: int) -> bool:
    """Mounts a file system of that size; False where that is not allowed."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    return subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_last_good_checkpoint_stays(uninterrupted, folder):
    run = folder / "full"
    size = sum(path.stat().st_size for path in uninterrupted.glob("checkpoints/step_*8.pt")) // 1024
    if not small_disk(run, int(2.5 * size)):
        pytest.skip("this machine may not mount a small file system")
    try:
        result = train(folder, "--save_dir", "full", "--keep_last", "5", "--log_every", "0")
        assert result.returncode == 2
        assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
        checkpoints = Checkpoints(run / "checkpoints", 5)
        state = checkpoints.load_newest()
        assert state["step"] == step_of(checkpoints.paths()[-1]) >= 1
        assert not list(run.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(run)], check=True)


@pytest.mark.slow
def test_fine_tuning_writes_a_lora_of_the_generator(folder):
    settings = ["--train_type", "finetune", "--image_grad_quantile", "1", "--steps", "2"]
    result = train(folder, "--save_dir", "fine", *settings, "--log_every", "2")
    assert result.returncode == 0, result.stderr
    tensors = load_file(folder / "fine" / "lora.safetensors")
    assert any(name.startswith("transformer.") for name in tensors)
    last = read(folder / "fine")[-1]
    assert last["kind"] == "evaluation" and "evaluation/f_squared" not in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "0"], "batch_size must be above 0"),
        (["--enable_hps", "--disable_hps"], "--disable_hps contradicts"),
        (["--red_weighting", "2", "--rewards", "hps"], "add --enable_red"),
        (["--rewards", "niceness"], "unknown reward 'niceness'"),
        (["--task", "gone.txt"], "gone.txt"),
        (["--model", "gone/model"], "no model 'gone/model'"),
        (["--watch_reward", "redness"], "redness is trained on"),
        (["--enable_hps"], "HPS_v2.1_compressed.pt"),
        (["--train_type", "finetune"], "image_grad_quantile"),
        (["--config", "gone.toml"], "gone.toml"),
    ],
)
def test_bad_settings_end_before_anything_is_written(folder, arguments, message):
    result = train(folder, *arguments, "--save_dir", "bad")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not (folder / "bad").exists()
