"""The settings of a command: a dataclass filled from flags and a config file.

cyclopts reads both by the same rules and takes the help from the docstrings under the fields. No
other library supports lists (`--steps 1 2 4`), both spellings (`--lora-rank`, `--lora_rank`), TOML
and "did you mean" out of the box, with errors of one line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import App, CoercionError, CycloptsError, Parameter, Token
from cyclopts.config import Dict

from .config_files import check_path, find_config, read_toml

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.argument import Argument

Settings = TypeVar("Settings")

FLAT = Parameter(name="*")
"""For a field that is a dataclass: its fields become flags and keys like the others."""


def _place(_: Any, tokens: Sequence[Token]) -> str:
    return _expanded(tokens[0])


PLACE = Parameter(converter=_place)
"""For a string that is a path or another name, such as that of a model."""

_CONFIG = Parameter(
    help="Config file: the path of a .toml file, or the name of a shipped one. Flags override it."
)


def read_settings(
    kind: type[Settings], words: Sequence[str], command: str, summary: str = ""
) -> Settings:
    """Read settings from the words of a command line and the file that --config names.

    Args:
        kind: a dataclass.
        command: name of the command, for messages and --help.
        summary: first paragraph of --help; the docstring of `kind` from its second paragraph on
            follows.

    Raises:
        SystemExit: the words include --help, which is printed.
        ValueError: a setting is unknown, missing or of the wrong type (one line); or as `kind`
            raises it.
        FileNotFoundError: there is no such config file.
    """

    def make(settings: Any = None, *, config: str | None = None) -> Any:
        return kind() if settings is None else settings

    make.__annotations__ = {
        "settings": Annotated[kind, FLAT],
        "config": Annotated[str | None, _CONFIG],
    }
    _, _, details = cleandoc(kind.__doc__).partition("\n")
    make.__doc__ = f"{summary}\n{details}"
    if any(f.default is f.default_factory is MISSING for f in fields(kind)):
        make.__defaults__ = None  # from which cyclopts sees that a setting is required
    app = App(
        name=f"hypernoise {command}",
        config=_complete,
        version_flags=[],
        default_parameter=Parameter(
            name_transform=str,
            allow_repeating=True,
            consume_multiple=True,
            negative_iterable=(),
            show_default=_shown,
        ),
    )
    app["--help"].show = False
    app.default(make)
    # A word with a space is never a flag: `--prompts "-a red circle"`.
    words = [f" {word}" if word.startswith("-") and " " in word else word for word in words]
    try:
        called, bound, _ = app.parse_args(
            words, exit_on_error=False, print_error=False, verbose=False
        )
    except CycloptsError as error:
        raise ValueError(f"{command}: {_explained(error, command)}") from error
    result = called(*bound.args, **bound.kwargs)
    if called is not make:  # --help
        raise SystemExit(0)
    return result


def load_settings(kind: type[Settings], config: str | Path) -> Settings:
    """The settings in a .toml file, or in the shipped config of that name. Raises as
    `read_settings` does."""
    return read_settings(kind, ["--config", str(config)], "config")


def _complete(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add the values of the config file where no flag is given, then check all values.

    cyclopts calls this after it has read the flags and before it converts their values.
    """
    (config,) = (argument for argument in arguments if argument.name == "--config")
    if config.tokens:
        path = find_config(config.tokens[-1].value)
        values = {key: _as_words(value) for key, value in read_toml(path).items()}
        if "config" in values:
            raise ValueError(f"{path}: a config file cannot name another one")
        lists = {f"--{key}": key for key, value in values.items() if isinstance(value, list)}
        for argument in arguments:
            if (key := lists.get(argument.name)) and get_origin(argument.hint) is not tuple:
                raise ValueError(f"{path}: [{key}] takes one value, not a list")
        if empty := [key for key, value in values.items() if value == []]:
            raise ValueError(f"{path}: [{empty[0]}] is an empty list; leave the key out")
        Dict(values, source=str(path), use_commands_as_keys=False)(app, commands, arguments)
    for argument in arguments:
        _check(argument)


def _as_words(value: Any) -> Any:
    """A table of weights in the form that the flag takes: hps=5,clip=0.01."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return value


def _check(argument: Argument) -> None:
    """Handle what cyclopts does not: None, ~ in paths, and fractions given for integers."""
    kinds = {argument.hint, *get_args(argument.hint)}
    if argument.field_info.default is None and [t.value for t in argument.tokens] == ["None"]:
        argument.tokens.clear()
    for index, token in enumerate(argument.tokens):
        if Path in kinds:
            argument.tokens[index] = token.evolve(value=_expanded(token))
        if int in kinds and "." in token.value:  # cyclopts would round it
            raise CoercionError(token=token, argument=argument, target_type=int)


def _expanded(token: Token) -> str:
    """The path with ~ or ~NAME replaced by the home directory, as in a shell."""
    if token.source != "cli":
        check_path(token.value, f"{token.keyword} from {token.source}")
    return os.path.expanduser(token.value)


def _shown(default: Any) -> str | None:
    """How --help shows a default; None: not at all."""
    if isinstance(default, Mapping):
        return _as_words({name: f"{weight:g}" for name, weight in default.items()})
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or None
    return None if default is None else str(default)


def _explained(error: CycloptsError, command: str) -> str:
    """What is wrong, in one line."""
    text = " ".join(str(error).split())
    token = getattr(error, "token", None)
    if token is not None and token.source != "cli":
        return text if token.source in text else f"{token.source}: {text}"
    word = "" if token is None else token.keyword or token.value
    if word.startswith("-") and not word.startswith("--"):
        text += " Join a value that starts with - to its flag, as in --prompts=-a."
    return f"{text} See hypernoise {command} --help"
