"""Settings from files and from the published flags: what beats what, and what is refused."""

from inspect import signature
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from hypernoise.hypernoise_core.rewards import REWARDS, paper_weights
from hypernoise.training import cli
from hypernoise.training.arguments import CONFIGS, read_arguments, read_config, to_toml
from hypernoise.training.command_line import bind
from hypernoise.training.config import TrainingConfig
from hypernoise.training.evaluation.paraphrases import ask_command
from hypernoise.training.evaluation.settings import EvaluationConfig

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml"))


def read(*arguments: str) -> TrainingConfig:
    config, rest = read_arguments(arguments)
    assert rest == []
    return config


def test_every_published_setup_is_shipped():
    expected = {"sana", "sana-overfit", "sana-finetune", "flux", "sd-turbo", "redness"}
    assert expected | {"tiny-sprint", "tiny-redness"} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_survive_being_written_and_read(name, tmp_path):
    config = TrainingConfig(**read_config(name))
    (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert TrainingConfig(**read_config(str(tmp_path / "again.toml"))) == config


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


def test_every_reward_has_flags():
    for reward in REWARDS:
        name = {"redness": "red"}.get(reward.name, reward.name.replace("-", "_"))
        config = read("--rewards", "hps=1", f"--enable_{name}", f"--{name}_weighting", "0.25")
        assert config.rewards[reward.name] == 0.25


def test_other_published_flags():
    assert read("--disable_reg").reg_weight == 0
    assert read().modulate_noise
    assert not read("--disable_modulate_noise").modulate_noise
    assert read("--enable_modulate_noise").modulate_noise


def test_what_is_no_flag_of_rewards_is_left_for_the_other_settings():
    config, rest = read_arguments(["--lr", "0.1", "--enable_red", "--resume"])
    assert rest == ["--lr", "0.1", "--resume"]
    assert config.lr == 1e-3


def test_a_file_that_was_saved_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfbatch_size = 3\r\nlr = 0.5\r\n")
    assert read_config(str(tmp_path / "mine.toml")) == {"batch_size": 3, "lr": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = " + "[" * 45_000, "is no TOML file: it is nested too deeply"),
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
        ("batchsize = 3", "unknown setting 'batchsize'; did you mean batch_size?"),
        ("batch_size = '3'", "batch_size must be of type int, not '3'"),
        ("batch_size = 3.0", "batch_size must be of type int"),
        ("batch_size = true", "batch_size must be of type int"),
        ("lr = 'fast'", "lr must be of type float"),
        ("optim = 'rmsprop'", "optim must be one of sgd, adam, adamw, lbfgs"),
        ("rewards = 3", "rewards must be of type"),
        ("[rewards]\nhps = 'much'", "rewards.hps must be of type float"),
        ("lr = ", "is no TOML file"),
        ('save_dir = "C:\\new"', "save_dir holds '\\n', part of no path: in double quotes"),
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
    values = read_config(str(tmp_path / "mine.toml"))
    assert values["task"] == "C:\\new\\texts.txt" and str(values["save_dir"]) == "C:/new"


def test_a_tilde_stands_for_the_home_directory_in_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["data_dir", "init_adapter", "cache_dir", "rewards_folder", "save_dir"]
    texts = ["model", "task", "eval_task"]
    lines = [f'{name} = "~/{name}"' for name in (*paths, *texts)]
    (tmp_path / "mine.toml").write_text("\n".join([*lines, 'noise_prompt = "~/a"']))
    of_file = read("--config", "~/mine.toml")
    arguments = [f"--{name}=~/{name}" for name in (*paths, *texts)]
    of_flags = bind(cli.train, arguments, read()).keywords["settings"]
    for config in (of_file, of_flags):
        assert all(getattr(config, name) == tmp_path / name for name in paths)
        assert all(getattr(config, name) == str(tmp_path / name) for name in texts)
    assert of_file.noise_prompt == "~/a"  # a prompt is no path


def test_every_path_of_every_command_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {cli.train: TrainingConfig(), cli.evaluate: EvaluationConfig()}
    tried = 0
    for command in cli.COMMANDS.values():
        own = settings.get(command)
        types = {type(config).__name__: type(config) for config in settings.values()}
        types["Place"] = str
        hints = get_type_hints(command, localns=types)
        hints |= get_type_hints(type(own)) if own else {}
        required = [p.name for p in signature(command).parameters.values() if p.default is p.empty]
        places = [name for name, kind in hints.items() if Path in (kind, *get_args(kind))]
        words = ["~/x" if name in required else f"--{name}=~/x" for name in places]
        bound = bind(command, words, own).keywords
        for name in places:
            found = bound.get(name, getattr(bound.get("settings"), name, None))
            assert found in (tmp_path / "x", (tmp_path / "x",)), (command, name)
            tried += 1
    assert tried > 20
    assert bind(cli.generate, ["--model=~/x"]).keywords["model"] == str(tmp_path / "x")
    assert EvaluationConfig(ablation=("a=~/x",)).ablations == {"a": tmp_path / "x"}


def test_a_prompt_command_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "ask"
    program.write_text('#!/bin/sh\ncat > /dev/null\necho \'{"candidates": ["b"]}\'\n')
    program.chmod(0o755)
    assert ask_command("~/ask", ["a"]) == {"a": ["a", "b"]}
