"""The command line, run as people run it."""

import json
import platform
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generate import generate
from hypernoise.tests.warm import hypernoise as run
from hypernoise.training import cli, versions
from hypernoise.training.commands import settings
from hypernoise.training.commands.settings import GenerateConfig
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.prompt_files import read_prompts
from hypernoise.training.published_models import PUBLISHED
from hypernoise.training.report.figures import write_png
from hypernoise.training.settings import read_settings


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
    assert base.tobytes() != Image.open(tmp_path / "001_base.png").tobytes()  # another seed


def test_a_written_image_has_the_nearest_shades(tmp_path):
    write_png(tmp_path / "a.png", torch.tensor([0.0, 0.499, 0.501, 0.999]).expand(3, 2, 4))
    shades = [round(255 * value) for value in (0.0, 0.499, 0.501, 0.999)]
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == shades


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
    for image in results["plain"]["images"]:
        assert image["reno"] == pytest.approx(max(image["history"]))
        assert image["reno"] > image["start"] == image["history"][0]
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
        (["score", "gone", "--rewards", "redness"], "--prompts requires an argument"),
        (["download", "rewards", "niceness"], "unknown reward 'niceness'"),
        (["download", "pictures"], "cannot download 'pictures'"),
        (
            ["download", "rewards", "hps"],
            "HPS_v2.1_compressed.pt of xswu/HPSv2 could not be downloaded",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], "unknown command 'foo': choose from demo, train,"),
        (["generat"], "unknown command 'generat': did you mean generate?"),
        (["--versoin"], "unknown command '--versoin'"),
        (["generate", "--prompt", "a"], "Unknown option: --prompt. Did you mean --prompts?"),
        (["generate", "--prompt=a"], "Did you mean --prompts?"),
        (["train", "--config", "tiny-sprint", "--stepz", "1"], "Did you mean --steps?"),
        (["train", "--save_dri", "x"], "Unknown option: --save_dri. Did you mean --save_dir?"),
        (["train", "--no-memsav"], "Unknown option: --no-memsav. Did you mean --no-memsave?"),
        (["train", "--clip_weight", "3"], "Did you mean --clip_weighting?"),
        (["train", "--modulate_nois"], "Did you mean --modulate_noise?"),
        (["train", "--config", "sanna"], "there is no config file"),
        (["evaluate", "--config", "sana"], "configs/sana.toml"),
        (["evaluate", "--sede", "1"], "Did you mean --seeds?"),
        (["score", "x", "--prompt", "p"], "Did you mean --prompts"),
        (["reno", "--prompts", "a", "--zzz"], "Unknown option: --zzz. See hypernoise reno --help"),
        (["info", "--adaptr=x"], "Did you mean --adapter?"),
        (
            ["generate", "--prompts", "-red"],
            "Join a value that starts with - to its flag, as in --prompts=-a",
        ),
        (["generate", "a red circle"], "Unused Tokens: ['a red circle']"),
        (["info"], "info: Parameter --adapter requires an argument"),
        (["export", "a"], "export: Parameter --out requires an argument"),
        (["score", "x"], "score: Parameter --prompts requires an argument"),
        (["generate", "--steps"], "--steps requires an argument"),
        (["generate", "--steps", "--seed", "1"], "--steps requires an argument"),
        (["generate", "--steps", "x"], 'Invalid value for --steps: unable to convert "x" into int'),
        (["generate", "--steps", "1.5"], 'unable to convert "1.5" into int'),
        (["generate", "--height", "x"], "Invalid value for --height: "),
        (["train", "--lr", "fast"], 'Invalid value for --lr: unable to convert "fast" into float'),
        (["train", "--hps_weighting", "much"], "Invalid value for --hps_weighting: "),
        (["train", "--disable_hps", "--hps_weighting", "1"], "--disable_hps contradicts"),
        (["train", "--red_weighting", "1"], "add --enable_red"),
        (["train", "--optim", "foo"], 'Invalid value "foo" for --optim. Choose from: "sgd"'),
        (["evaluate", "--layout", "foo"], 'Invalid value "foo" for --layout. Choose from'),
        (["evaluate", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["train", "--batch_size", "0"], "batch_size must be above 0, not 0"),
        (["train", "--resume=perhaps"], 'unable to convert "perhaps" into bool'),
        (["generate", "--prompts", "a", "--out", "file/b"], "--out file/b: "),
        (["generate", "--prompts", "a", "--out", "a" * 300], "File name too long"),
        (["reno", "--prompts", "a", "--out", "file"], "choose another --out"),
        (["demo", "--out", "file"], "choose another --out"),
        (["evaluate", "--out", "file/b"], "choose another --out"),
        (["score", "gone", "--prompts", "p", "--csv", "file/b.csv"], "choose another --csv"),
        (["score", "gone", "--prompts", "p", "--csv", "folder"], "--csv folder is a folder"),
        (["card", "gone", "--out", "file/b"], "choose another --out"),
        (["export", "gone", "file/b.safetensors"], "choose another OUT"),
        (["train", "--seed", "18446744073709551616"], "seed 18446744073709551616 is out of range"),
        (["demo", "--seed", "-9223372036854775809"], "seeds go from -9223372036854775808 to"),
        (["generate", "--prompts", "a", "--seed", "18446744073709551616"], "is out of range"),
        (
            ["reno", "--prompts", "a", "b", "--seed", "18446744073709551615", "--model", "gone"],
            "seed 18446744073709551616 is out of range: seeds go from",
        ),
        (["download", "rewards", "--folder", "file"], "choose another --folder"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line_that_names_it(
    arguments, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hypernoise", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["hypernoise", *arguments])
    cli.main()


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["card", str(EMBEDDED_ADAPTER), "--out", "theirs.safetensors"], "--out"),
        (["export", str(EMBEDDED_ADAPTER), "theirs.safetensors"], "OUT"),
    ],
)
def test_a_file_that_is_there_is_replaced_where_that_is_asked_for_alone(
    arguments, flag, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_text("written by hand")
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments)
    assert capsys.readouterr().err == (
        f"hypernoise: {flag} theirs.safetensors already exists: choose another {flag}, or add "
        f"--force\n"
    )
    assert theirs.read_text() == "written by hand"
    call(monkeypatch, *arguments, "--force")
    assert theirs.read_bytes() != b"written by hand" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "name", "flag"),
    [
        (["train", "--config", "config.toml", "--save_dir", "."], "config.toml", "--save_dir"),
        (["train", "--resume", "--save_dir", "."], "hypernoise.safetensors", "--save_dir"),
        (["train", "--train_type=finetune", "--save_dir=."], "lora.safetensors", "--save_dir"),
        (["evaluate", "--task", "prompts.json", "--out", "."], "prompts.json", "--out"),
        (["evaluate", "--out", "."], "report.md", "--out"),
        (["demo", "--out", "."], "report.html", "--out"),
    ],
)
def test_a_folder_with_files_of_others_is_not_written_over(
    arguments, name, flag, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    texts = {"config.toml": "steps = 1 # mine\n", "prompts.json": '["a red circle"]'}
    theirs = tmp_path / name
    theirs.write_text(texts.get(name, "written by hand"))
    before = theirs.read_bytes()
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments)
    assert capsys.readouterr().err == (
        f"hypernoise: {flag} . contains {name}, which this command did not write and would "
        f"replace: choose another {flag}, or move that file away\n"
    )
    assert theirs.read_bytes() == before and list(tmp_path.iterdir()) == [theirs]


def test_texts_that_begin_with_a_dash_are_prompts():
    def prompts(*words: str) -> list[str]:
        return read_prompts(read_settings(GenerateConfig, words, "generate").prompts, None)

    assert prompts("--prompts", "-a red circle", "--help me", "b", "-5") == [
        "-a red circle", "--help me", "b", "-5",
    ]  # fmt: skip
    assert prompts("--prompts=-red", "--images_per_prompt=2") == ["-red"]
    assert prompts("--prompts=--steps=3") == ["--steps=3"]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_of_every_flag_what_it_is(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "argv", ["hypernoise", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = capsys.readouterr().out
    summary = cli.COMMANDS[name].summary
    assert not ended.value.code and text.startswith(f"Usage: hypernoise {name} ")
    assert summary in text and "Raises" not in text and "ValueError" not in text
    listed = [line.strip("│ *") for line in text.splitlines() if line.startswith("│")]
    of_flag = {word: line for line in listed for word in line.split() if word.startswith("--")}
    for flag in [*flags(getattr(settings, cli.COMMANDS[name].settings)), "config"]:
        _, _, words = of_flag[f"--{flag}"].partition("  ")
        assert len(words.split()) > 1, flag
    monkeypatch.setattr(sys, "argv", ["hypernoise"])
    cli.main()
    assert f"\n  {name} " in (overview := capsys.readouterr().out) and summary in overview


def flags(kind: type) -> list[str]:
    """The fields of a dataclass of settings, and of the dataclasses in it."""
    nested = {field.name: field.default for field in fields(kind) if is_dataclass(field.default)}
    inner = [flag for value in nested.values() for flag in flags(type(value))]
    return [field.name for field in fields(kind) if field.name not in nested] + inner


def test_the_version_is_ready_for_a_report(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hypernoise", "--version"])
    cli.main()
    text = capsys.readouterr().out
    for package in ("hypernoise", "diffusers", "transformers", "accelerate", "peft"):
        assert f"{package} {metadata.version(package)}\n" in text
    assert f"\ntorch {torch.__version__}\n" in text
    assert f"Python {platform.python_version()} on " in text and "\ndevice " in text


def test_the_version_is_told_where_packages_are_missing(monkeypatch, capsys):
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["hypernoise", "--version"])
    cli.main()
    text = capsys.readouterr().out
    assert "diffusers not installed\n" in text and "device unknown" in text


def test_a_missing_package_is_told_with_its_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    for module in ("settings", "config", "commands.settings", "evaluation.settings"):
        monkeypatch.delitem(sys.modules, f"hypernoise.training.{module}", raising=False)
    monkeypatch.setattr(sys, "argv", ["hypernoise", "generate"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "cyclopts" in (message := capsys.readouterr().err) and message.count("\n") == 1
    assert 'pip install "hypernoise[train]"' in message


def test_help_and_mistakes_import_no_torch():
    """Of any command."""
    script = (
        "import contextlib, sys\n"
        "from hypernoise.training import cli\n"
        "cli.main()\n"
        "for name in cli.COMMANDS:\n"
        "    for flag in ('--help', '--no_such_flag'):\n"
        "        sys.argv = ['hypernoise', name, flag]\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            cli.main()\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Unknown option: --no_such_flag") == len(cli.COMMANDS)


def test_a_command_imports_what_it_needs_alone():
    """`info` no library of the generators."""
    script = (
        "import sys\n"
        "from hypernoise.training import cli\n"
        f"sys.argv = ['hypernoise', 'info', {str(EMBEDDED_ADAPTER)!r}]\n"
        "cli.main()\n"
        "print(*{'diffusers', 'transformers', 'accelerate'} & sys.modules.keys(), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [""]
    assert json.loads(result.stdout)["kind"] == "noise hypernetwork"


def test_an_error_that_is_not_the_user_s_keeps_its_traceback_and_says_where_to_report_it(
    monkeypatch, capsys
):
    monkeypatch.setattr(json, "dumps", None)
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "info", str(EMBEDDED_ADAPTER))
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and lines[0].startswith("Traceback")
    assert "TypeError" in lines[-2] and lines[-1].startswith("hypernoise: unexpected error")
    assert lines[-1].endswith("/issues")


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
        cli.main()
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
