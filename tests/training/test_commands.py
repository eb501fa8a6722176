"""The command line, run as people run it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import generate
from hypernoise.training.cli import main
from hypernoise.training.inference import EMBEDDED_ADAPTER
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.published_models import PUBLISHED


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from hypernoise.training.cli import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


def test_the_console_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="hypernoise")
    assert callable(script.load())


def test_generate_writes_base_hypernoise_and_a_grid(tmp_path):
    prompts = ["--prompts", "a red circle", "two blue squares"]
    result = run("generate", *prompts, "--images-per-prompt", "2", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    expected = [f"{i:03d}_{kind}.png" for i in range(4) for kind in ("base", "hypernoise")]
    assert names == [*expected, "grid.png"]
    base, ours = (Image.open(tmp_path / f"000_{kind}.png") for kind in ("base", "hypernoise"))
    assert base.size == ours.size == (64, 64)
    assert base.tobytes() != ours.tobytes()


def test_strength_0_writes_the_base_image(tmp_path):
    result = run("generate", "--prompts", "a red circle", "--strength", "0", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    pair = [(tmp_path / f"000_{kind}.png").read_bytes() for kind in ("base", "hypernoise")]
    assert pair[0] == pair[1]


@pytest.mark.slow
def test_reno_writes_better_images_and_the_noise_they_come_from(tmp_path):
    prompts = ["--prompts", "a red circle", "two blue squares", "--iterations", "6"]
    results = {}
    for name, more in (("plain", []), ("warm", ["--adapter", str(EMBEDDED_ADAPTER)])):
        result = run("reno", *prompts, *more, "--batch-size", "1", "--out", str(tmp_path / name))
        assert result.returncode == 0, result.stderr
        results[name] = json.loads((tmp_path / name / "reno.json").read_text())
    assert all(image["reno"] > image["start"] for image in results["plain"]["images"])
    starts = {k: sum(i["start"] for i in r["images"]) for k, r in results.items()}
    assert starts["warm"] > starts["plain"]
    assert results["plain"]["rewards"] == {"tiny-preference": 1.0}
    noise = load_file(tmp_path / "plain" / "noise.safetensors")["noise"]
    images = generate(
        load_pipeline("tiny-sprint"),
        ["a red circle", "two blue squares"],
        seeds=[0, 1],
        noise=noise,
    ).images
    written = np.asarray(Image.open(tmp_path / "plain" / "001_reno.png")) / 255
    assert np.abs(written - images[1].permute(1, 2, 0).numpy()).max() < 0.01
    assert Image.open(tmp_path / "plain" / "grid.png").width > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "no prompt"),
        (["reno"], "no prompt"),
        (["reno", "--prompts", "a", "--iterations", "0"], "iterations must be above 0"),
        (["reno", "--prompts", "a", "--rewards", "niceness"], "unknown reward 'niceness'"),
        (["reno", "--prompts", "a", "--height", "64"], "both --height and --width"),
        (["score", "gone", "--prompts", "p.txt", "--rewards", "redness"], "no folder gone"),
        (["score", "gone", "--rewards", "redness"], "--prompts FILE"),
        (["download", "rewards", "niceness"], "unknown reward 'niceness'"),
        (["download", "pictures"], "cannot download 'pictures'"),
        (["download", "rewards", "hps"], "HPS_v2.1_compressed.pt of xswu/HPSv2 did not arrive"),
        (
            [
                "generate",
                "--prompts",
                "a",
                "--model",
                "no/model",
                "--adapter",
                str(EMBEDDED_ADAPTER),
            ],
            "no model 'no/model'",
        ),
        (["generate", "--prompts", "a", "--model", "no/model"], "--adapter"),
        (["generate", "--prompts", "a", "--adapter", "missing.safetensors"], "missing.safetensors"),
        (["generate", "--prompts", "a", "--height", "60"], "64"),
        (["info", "missing.safetensors"], "missing.safetensors"),
        (["export", str(EMBEDDED_ADAPTER), "a.safetensors", "--rank", "99"], "16"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_short_demo_writes_the_whole_report(tmp_path):
    result = run(
        "demo", "--out", str(tmp_path), "--steps", "3", "--per-category", "4", "--seed", "5"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["methods"]) == {"base", "hypernoise", "best_of_8"}
    for entry in report["methods"].values():
        assert set(entry) == {"checker_mean", "checker", "reward_mean", "seconds_per_image"}
        assert len(entry["checker"]) == 6
    assert report["train_seconds"] > 0 and report["seeds"]["training"] == 5
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "://" not in page
    for name in ("side_by_side.png", "training_curves.png"):
        assert Image.open(tmp_path / name).width > 500
        assert str(tmp_path / name) in result.stdout
    info = run("info", str(tmp_path / "tiny-hypernoise.safetensors"))
    assert info.returncode == 0, info.stderr
    assert json.loads(info.stdout)["training_steps"] == 3


@pytest.mark.parametrize("name", ["sana", "flux", "sd-turbo"])
def test_a_dry_run_prints_settings_parameters_and_memory_of_the_full_size_model(name):
    result = run("train", "--config", name, "--dry_run", "--processes", "6")
    assert result.returncode == 0, result.stderr
    assert f'model = "{name}"' in result.stdout
    assert f"{PUBLISHED[name].parameters:,} frozen" in result.stdout
    assert "GB  in total" in result.stdout


def test_export_writes_a_smaller_file_and_prints_the_error(tmp_path):
    out = tmp_path / "small.safetensors"
    result = run("export", str(EMBEDDED_ADAPTER), str(out), "--rank", "4")
    assert result.returncode == 0, result.stderr
    assert "relative error" in result.stdout and str(out) in result.stdout
    assert out.stat().st_size < EMBEDDED_ADAPTER.stat().st_size / 3
    facts = json.loads(run("info", str(out)).stdout)
    assert (facts["kind"], facts["rank"]) == ("noise hypernetwork", 4)


def test_an_adapter_without_alpha_is_usable_in_each_command_that_takes_it(
    tmp_path, monkeypatch, capsys
):
    adapter = load_adapter(EMBEDDED_ADAPTER)
    source, told = tmp_path / "silent.safetensors", tmp_path / "told.safetensors"
    save_adapter(adapter, source)
    save_file(load_file(source), source)  # without the header

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hypernoise", *arguments])
        main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit):
        call("info", str(source))
    assert "hypernoise export ADAPTER OUT.safetensors --alpha ALPHA" in capsys.readouterr().err
    alpha = ["--alpha", str(adapter.metadata.alpha)]
    call("export", str(source), str(told), "--dtype", "float32", *alpha)
    for facts in (call("info", str(source), *alpha), call("info", str(told))):
        assert json.loads(facts)["alpha"] == adapter.metadata.alpha
    images = {}
    for name, options in (("silent", [str(source), *alpha]), ("told", [str(told)])):
        out = tmp_path / name
        call("generate", "--prompts", "a red circle", "--out", str(out), "--adapter", *options)
        images[name] = (out / "000_hypernoise.png").read_bytes()
    assert images["silent"] == images["told"] != (out / "000_base.png").read_bytes()


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        load_pipeline(str(tmp_path))


def test_a_loaded_pipeline_is_frozen():
    pipeline = load_pipeline("tiny-sprint")
    modules = [c for c in pipeline.components.values() if isinstance(c, torch.nn.Module)]
    assert not any(p.requires_grad for module in modules for p in module.parameters())
