"""From a config file and the published flags of the reference to a `TrainingConfig`.

The command line beats the file, the file beats the defaults.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from ..hypernoise_core.reward_names import PAPER_WEIGHTS, parse_weights
from ..hypernoise_core.rewards import REWARDS
from ..hypernoise_core.text_file import read_text
from .config import TrainingConfig
from .values import Place, bare, expand_home, is_place, read_value

CONFIGS = Path(__file__).resolve().parent / "configs"
_PUBLISHED_NAMES = {"redness": "red"}
"""Rewards that the reference calls otherwise."""
_LARGEST = 100_000
"""Bytes of a config file; the shipped ones have less than 1,000, and a run's own 2,000."""
_MOST_DOTS = 1000
"""In a line: a key of very many parts takes the parser minutes and gigabytes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BACKSLASHES = (
    "in double quotes a backslash begins an escape such as \\n; write a Windows path in 'single "
    "quotes', or with forward slashes"
)


def read_arguments(arguments: Sequence[str]) -> tuple[TrainingConfig, list[str]]:
    """The settings that `--config` and the flags that stand for no single setting make.

    These flags are `--rewards`, for every reward `--enable_X`, `--disable_X` and `--X_weighting`,
    `--disable_reg`, `--enable_modulate_noise` and `--disable_modulate_noise`.

    Returns:
        The settings, and the arguments that are left.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: a setting is unknown, of a wrong type, out of range, or contradicts another.
    """
    known, rest = _parser().parse_known_args(arguments)
    values = read_config(known.config) if known.config else {}
    values["rewards"] = _rewards(known, values.get("rewards"))
    if known.disable_reg:
        values["reg_weight"] = 0.0
    if known.modulate_noise is not None:
        values["modulate_noise"] = known.modulate_noise
    return TrainingConfig(**values), rest


def other_flags() -> list[str]:
    """The flags that `read_arguments` reads, in one spelling."""
    names = ["config", "rewards", "disable_reg", "enable_modulate_noise", "disable_modulate_noise"]
    for reward in _flag_names().values():
        names += [f"enable_{reward}", f"disable_{reward}", f"{reward}_weighting"]
    return [f"--{name}" for name in names]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--rewards")
    parser.add_argument(*_spellings("disable_reg"), action="store_true")
    for word, value in (("enable", True), ("disable", False)):
        flags = _spellings(f"{word}_modulate_noise")
        parser.add_argument(*flags, dest="modulate_noise", action="store_const", const=value)
    for name in _flag_names().values():
        parser.add_argument(*_spellings(f"enable_{name}"), action="store_true")
        parser.add_argument(*_spellings(f"disable_{name}"), action="store_true")
        parser.add_argument(*_spellings(f"{name}_weighting"), type=float)
    return parser


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _flag_names() -> dict[str, str]:
    """What the flags call each reward."""
    names = (cls.name for cls in REWARDS)
    return {name: _PUBLISHED_NAMES.get(name, name.replace("-", "_")) for name in names}


def _rewards(known: argparse.Namespace, of_file: dict[str, float] | None) -> dict[str, float]:
    """The weights of the file, or those of `--rewards`, with what the single flags change."""
    if known.rewards is not None:
        weights = parse_weights(known.rewards)
    else:
        weights = dict(TrainingConfig().rewards if of_file is None else of_file)
    defaults = {cls.name: PAPER_WEIGHTS.get(cls.name, 1.0) for cls in REWARDS}
    for name, flag in _flag_names().items():
        enable, disable = getattr(known, f"enable_{flag}"), getattr(known, f"disable_{flag}")
        weight = getattr(known, f"{flag}_weighting")
        if disable and (enable or weight is not None):
            raise ValueError(f"--disable_{flag} contradicts another flag for {name}")
        if disable:
            weights.pop(name, None)
        elif enable:
            weights.setdefault(name, defaults[name])
        if weight is not None:
            if name not in weights:
                raise ValueError(f"--{flag}_weighting without {name}: add --enable_{flag}")
            weights[name] = weight
    return {name: weight for name, weight in weights.items() if weight}


def read_config(name: str) -> dict[str, Any]:
    """The settings in a .toml file, or in the shipped one of that name.

    Raises:
        FileNotFoundError: there is no such file; lists the shipped ones.
        ValueError: names the file and the setting that is unknown or of a wrong type.
    """
    path = Path(expand_home(name)) if Path(name).suffix else CONFIGS / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise FileNotFoundError(f"no config {path}; shipped are {shipped}")
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"it has {size} bytes, more than {_LARGEST}")
        values = _parse_toml(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    types = get_type_hints(TrainingConfig, include_extras=True)
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path}: unknown setting {key!r}{hint}")
        values[key] = _converted(value, types[key], f"{path}: {key}")
    return values


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    for number, line in enumerate(text.split("\n"), 1):
        if (dots := line.count(".")) > _MOST_DOTS:
            raise ValueError(f"line {number} has {dots} dots, more than {_MOST_DOTS}")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        line = re.search(r"at line (\d+)", str(error))
        if line is None or "\\" not in text.split("\n")[int(line[1]) - 1]:
            raise
        raise ValueError(f"{error}; {_BACKSLASHES}") from error


def _converted(value: Any, kind: Any, where: str) -> Any:
    """The value as that type; a whole number may stand for a float, and a text for a path.

    Raises:
        ValueError: it is of another type, or a text that is no path.
    """
    kind = bare(kind)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _converted(item, float, f"{where}.{key}") for key, item in value.items()}
    if get_origin(kind) is Literal or (is_place(kind) and isinstance(value, str)):
        if is_place(kind) and (control := _CONTROL.search(value)):
            raise ValueError(f"{where} holds {control[0]!r}, part of no path: {_BACKSLASHES}")
        try:
            return read_value(kind, value)
        except ValueError as error:
            raise ValueError(f"{where} {error}") from None
    kind = str if kind == Place else kind
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (dict if get_origin(kind) is dict else kind):
        name = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{where} must be of type {name}, not {value!r}")
    return value


def to_toml(config: TrainingConfig) -> str:
    """All settings as `read_config` reads them; those that are None are left out."""
    plain, tables = [], []
    for name in (f.name for f in fields(config)):
        value = getattr(config, name)
        if isinstance(value, Mapping):
            tables += [f"\n[{name}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
        elif value is not None:
            plain.append(f"{name} = {_toml(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)
