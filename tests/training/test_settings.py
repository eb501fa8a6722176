"""Settings from flags and config files: what beats what, and what is refused."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from hypernoise.hypernoise_core.reward_registry import paper_weights
from hypernoise.hypernoise_core.rewards import REWARDS
from hypernoise.training import cli
from hypernoise.training.commands import settings
from hypernoise.training.commands.settings import (
    EvaluationConfig,
    GenerateConfig,
    RenoCommand,
    TrainCommand,
)
from hypernoise.training.config import TrainingConfig
from hypernoise.training.config_files import CONFIGS, to_toml
from hypernoise.training.evaluation.paraphrases import ask_command
from hypernoise.training.settings import load_settings, read_settings

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml"))
OF_EVALUATION = {"evaluation-tiny"}
KINDS = {name: getattr(settings, command.settings) for name, command in cli.COMMANDS.items()}


def read(*words: str) -> TrainingConfig:
    return read_settings(TrainCommand, words, "train").config


def test_every_published_setup_is_shipped():
    expected = {"sana", "sana-overfit", "sana-finetune", "flux", "sd-turbo", "redness"}
    tiny = {"tiny-sprint", "tiny-redness", "tiny-finetune"}
    assert expected | tiny | OF_EVALUATION == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_survive_being_written_and_read(name, tmp_path):
    kind = EvaluationConfig if name in OF_EVALUATION else TrainingConfig
    config = load_settings(kind, name)
    (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_settings(kind, tmp_path / "again.toml") == config != kind()


def test_an_empty_list_in_a_file_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text("steps = []\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.toml: \[steps\] is an empty list"):
        load_settings(EvaluationConfig, tmp_path / "mine.toml")


def test_texts_that_need_quoting_survive_being_written_and_read(tmp_path):
    text = 'a "red" \\ circle,\n\tb=c # é'
    config = TrainingConfig(noise_prompt=text, data_dir=Path("a b"), max_seconds=None, steps=7)
    (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_settings(TrainingConfig, tmp_path / "again.toml") == config


def test_published_hyperparameters():
    sana, flux, turbo = (read("--config", name) for name in ("sana", "flux", "sd-turbo"))
    assert (sana.lora_rank, sana.lora_alpha, sana.optim, sana.lr) == (128, 256, "sgd", 1e-3)
    assert (flux.lora_alpha, flux.optim, flux.lr, flux.weight_decay) == (640, "adamw", 2e-5, 1e-4)
    assert (turbo.lora_alpha, turbo.grad_clip, turbo.warmup_steps) == (128, 10.0, 0)
    batches = [(c.batch_size, c.accumulation_steps, c.latent_type) for c in (sana, flux, turbo)]
    assert batches == [(18, 3, "batch"), (7, 4, "batch"), (48, 1, "inf")]
    assert all(c.reg_weight == 0.5 and c.rewards == paper_weights() for c in (sana, flux, turbo))


def test_the_defaults_are_the_reference_s():
    config = read()
    assert config == TrainingConfig()
    assert (config.lr, config.epochs, config.batch_size) == (1e-3, 50, 32)
    assert (config.lora_rank, config.alpha_multiplier) == (128, 2)
    assert (config.latent_type, config.reg_type, config.reg_weight) == ("inf", "l2", 0.5)
    assert config.rewards == {"hps": 5.0, "imagereward": 1.0, "clip": 0.01, "pickscore": 0.05}


def test_flags_change_the_rewards_one_by_one():
    assert "hps" not in read("--disable_hps").rewards
    assert read("--enable_red").rewards == paper_weights() | {"redness": 1.0}
    assert read("--clip_weighting", "0.5").rewards["clip"] == 0.5
    assert read("--hps-weighting", "0").rewards.keys() == paper_weights().keys() - {"hps"}
    tiny = ["--config", "tiny-sprint"]
    assert read(*tiny).rewards == {"tiny-preference": 1.0}
    assert read(*tiny, "--enable_red", "--red_weighting", "2").rewards["redness"] == 2.0
    assert read(*tiny, "--rewards", "hps=3").rewards == {"hps": 3.0}


def test_a_reward_that_a_flag_removes_can_be_watched():
    assert read("--disable_hps", "--watch_reward", "hps").watch_reward == "hps"


def test_every_reward_has_flags():
    for reward in REWARDS:
        name = {"redness": "red"}.get(reward.name, reward.name.replace("-", "_"))
        config = read("--rewards", "hps=1", f"--enable_{name}", f"--{name}_weighting", "0.25")
        assert config.rewards[reward.name] == 0.25
        assert reward.name not in read(f"--disable-{name.replace('_', '-')}").rewards


def test_other_published_flags():
    assert read("--disable_reg").reg_weight == 0
    assert read().modulate_noise
    assert not read("--disable_modulate_noise").modulate_noise
    assert read("--enable_modulate_noise").modulate_noise


def test_flags_have_both_spellings_and_beat_the_file():
    tiny = ["--config", "tiny-sprint"]
    assert read(*tiny, "--lora_rank", "3").lora_rank == read(*tiny, "--lora-rank=3").lora_rank == 3
    assert read("--batch_size", "3", *tiny).batch_size == 3
    assert read(*tiny).memsave is False and read(*tiny, "--memsave").memsave
    assert not read("--no-memsave").memsave and not read("--no_memsave").memsave


def test_of_a_flag_that_is_given_twice_the_last_one_counts():
    assert read("--lr", "1", "--lr", "2").lr == 2
    assert read("--memsave", "--no-memsave").memsave is False


def test_none_takes_back_what_a_config_says():
    assert read("--config", "tiny-sprint").steps == 800
    assert read("--config", "tiny-sprint", "--steps", "None").steps is None
    assert read("--watch_reward", "none").watch_reward == "none"


def test_every_command_takes_a_config_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('prompts = ["a", "-b"]\nseed = 3\niterations = 7\n[rewards]\nhps = 2')
    reno = read_settings(RenoCommand, ["--config", str(file), "--seed", "4"], "reno")
    assert (reno.prompts, reno.seed, reno.search.iterations) == (("a", "-b"), 4, 7)
    assert reno.rewards == "hps=2" and reno.search.patience == 0
    file.write_text("steps = [1, 2]\nadapter = ['a.safetensors']\nrewards = 'paper'")
    evaluation = load_settings(EvaluationConfig, file)
    assert evaluation.steps == (1, 2) and evaluation.adapter == (Path("a.safetensors"),)
    assert read_settings(EvaluationConfig, ["--config", str(file), "--steps", "4"], "").steps == (
        4,
    )


def test_a_file_that_was_saved_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfbatch_size = 3\r\nlr = 0.5\r\n")
    config = load_settings(TrainingConfig, tmp_path / "mine.toml")
    assert config == TrainingConfig(batch_size=3, lr=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = " + "[" * 45_000, "is not a valid TOML file: it is nested too deeply"),
        ("steps = " + "[\n" * 45_000, "nested too deeply"),
        ("steps = " + "{a = " * 19_000, "nested too deeply"),
        ("[" + "a." * 45_000 + "a]", "line 1 has 45000 dots, more than 1000"),
        ("\n" + "a." * 3_000 + "a = 1", "line 2 has 3000 dots, more than 1000"),
        ("steps = 1\n" + "#" * 100_000, "has 100010 bytes, more than 100000"),
    ],
    ids=["array", "lines", "table", "header", "key", "size"],
)
def test_a_file_that_is_made_to_be_slow_is_refused(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match="mine.toml") as error:
        read("--config", str(tmp_path / "mine.toml"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "Did you mean --batch_size?"),
        ("steps = 1\nlora_rnk = 3", "Did you mean --lora_rank?"),
        ("batch_size = 'three'", 'unable to convert "three" into int'),
        ("batch_size = 3.0", 'unable to convert "3.0" into int'),
        ("batch_size = true", 'unable to convert "True" into int'),
        ("batch_size = [3, 4]", "[batch_size] takes one value, not a list"),
        ("model = []", "[model] takes one value"),
        ("batch_size = {a = 3}", "[batch_size]"),
        ("batch_size = 1979-05-27", "[batch_size]"),
        ("[batch_size.a.b]\nc = 3", "[batch_size]"),
        ("lr = 'fast'", 'unable to convert "fast" into float'),
        ("memsave = 3", 'unable to convert "3" into bool'),
        ("optim = 'rmsprop'", "sgd"),
        ("rewards = 3", "unknown reward '3'"),
        ("[rewards]\nhps = 'much'", "the weight of hps is not a number: 'much'"),
        ("[rewards]\nhpx = 3", "unknown reward 'hpx'"),
        ("[rewards.hps]\na = 3", "the weight of hps is not a number"),
        ("config = 'sana'", "cannot name another one"),
        ("lr = ", "is not a valid TOML file"),
        ('save_dir = "C:\\new"', "contains '\\n', which no path can contain: in double quotes"),
        ('task = "C:\\texts\\a.txt"', "write a Windows path in 'single quotes'"),
        ('lr = 1.0\nsave_dir = "C:\\Users\\me"', "or with forward slashes"),
        ('data_dir = "C:\\data\\"', "write a Windows path in 'single quotes'"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match="mine.toml") as error:
        read("--config", str(tmp_path / "mine.toml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "--help" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({name: 0}, name)
        for name in ("batch_size", "epochs", "steps", "lora_rank", "lr", "grad_clip")
    ]
    + [({"lr": float("nan")}, "lr"), ({"ema_decay": 1.0}, "ema_decay")]
    + [({"max_seconds": 0.0}, "max_seconds"), ({"log_every": -1}, "log_every")]
    + [({"image_grad_quantile": value}, "image_grad_quantile") for value in (0.0, 1.5)]
    + [({"rewards": {}}, "enable one"), ({"rewards": {"hps": 0.0}}, "weight of hps")]
    + [({"rewards": {"niceness": 1.0}}, "unknown reward 'niceness'")]
    + [({"watch_reward": "hps"}, "hps is trained on")]
    + [({"one_prompt_per_batch": True, "latent_type": "one"}, "copies of one image")]
    + [({"train_type": "finetune", "last_layer_name": "proj_out"}, "last_layer_name belongs")]
    + [({"train_type": "finetune", "modulate_noise": False}, "modulate_noise belongs")],
)
def test_settings_that_make_no_sense_are_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**bad)


def test_a_windows_path_in_single_quotes_stays_as_it_is(tmp_path):
    (tmp_path / "mine.toml").write_text("task = 'C:\\new\\texts.txt'\nsave_dir = 'C:/new'")
    config = load_settings(TrainingConfig, tmp_path / "mine.toml")
    assert config.task == "C:\\new\\texts.txt" and str(config.save_dir) == "C:/new"


def test_a_tilde_stands_for_the_home_directory_in_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["data_dir", "init_adapter", "cache_dir", "rewards_folder", "save_dir"]
    texts = ["model", "task", "eval_task"]
    lines = [f'{name} = "~/{name}"' for name in (*paths, *texts)]
    (tmp_path / "mine.toml").write_text("\n".join([*lines, 'noise_prompt = "~/a"']))
    of_file = read("--config", "~/mine.toml")
    of_flags = read(*(f"--{name}=~/{name}" for name in (*paths, *texts)))
    for config in (of_file, of_flags):
        assert all(getattr(config, name) == tmp_path / name for name in paths)
        assert all(getattr(config, name) == str(tmp_path / name) for name in texts)
    assert of_file.noise_prompt == "~/a"  # a prompt is no path


def test_every_path_of_every_command_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tried = 0
    for name, kind in KINDS.items():
        hints = get_type_hints(kind)
        places = [key for key, hint in hints.items() if Path in (hint, *get_args(hint))]
        needed = ["rewards"] if name == "download" else []
        found = read_settings(kind, [*needed, *(f"--{key}=~/x" for key in places)], name)
        for key in places:
            assert getattr(found, key) in (tmp_path / "x", (tmp_path / "x",)), (name, key)
            tried += 1
    assert tried > 20
    generate = read_settings(GenerateConfig, ["--model=~/x"], "generate")
    assert generate.model == str(tmp_path / "x")
    assert EvaluationConfig(ablation=("a=~/x",)).ablations == {"a": tmp_path / "x"}


def test_a_prompt_command_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "ask"
    program.write_text('#!/bin/sh\ncat > /dev/null\necho \'{"candidates": ["b"]}\'\n')
    program.chmod(0o755)
    assert ask_command("~/ask", ["a"]) == {"a": ["a", "b"]}
