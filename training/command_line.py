"""The flags of a command: those of its function's parameters, with their types, defaults and docs.

A parameter without a default stands on the command line without a flag. The parameter
`settings` is a dataclass and stands for its fields.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from .values import Place, bare, read_value

NO_FLAG = {"flag": False}
"""Metadata of a dataclass's field that has no flag."""
HELP = ("-h", "--help")

_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_CUT = 60  # characters of a bad word in a message


class HelpAsked(Exception):
    """Somebody wants to know what the command takes; the message says it."""


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations that raises ValueError, with one line that names the flag."""

    def __init__(self, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        options = {"add_help": False, "allow_abbrev": False, "formatter_class": formatter} | options
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


@dataclass(frozen=True)
class Parameter:
    """One thing that a command is told."""

    name: str
    kind: Any
    default: Any = MISSING
    help: str = ""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def flags(self) -> tuple[str, ...]:
        """All that stand for it; none where its value stands alone."""
        if not self.has_flag:
            return ()
        negative = f"--no-{self.flag[2:]}"
        return (self.flag, negative) if bare(self.kind) is bool else (self.flag,)

    @property
    def has_flag(self) -> bool:
        return self.default is not MISSING

    @property
    def is_list(self) -> bool:
        return get_origin(bare(self.kind)) is tuple


def bind(
    command: Callable[..., None],
    arguments: Sequence[str],
    settings: Any = None,
    other_flags: Collection[str] = (),
) -> Callable[[], None]:
    """The command with what its arguments say, ready to be called.

    Args:
        settings: a dataclass, for a command with a parameter of that name: its fields hold where
            there is no flag.
        other_flags: that have been taken out of the arguments before.

    Raises:
        HelpAsked: they hold --help.
        ValueError: they hold what the command does not take, or lack what it needs; one line.
    """
    title, parameters = command.__name__, parameters_of(command, settings)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if any(word in HELP for word in arguments[:end]):
        raise HelpAsked(_help(title, command, parameters))
    words = [_with_dashes(word) for word in arguments[:end]]
    known, rest = _parser(parameters).parse_known_args(words)
    _check_flags(title, rest, parameters, other_flags, arguments)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(known).items()}
    values |= _places(title, parameters, [*rest, *arguments[end + 1 :]])
    if settings is not None:
        own = {field.name for field in fields(settings)} & values.keys()
        values["settings"] = replace(settings, **{name: values.pop(name) for name in own})
    return partial(command, **values)


def parameters_of(command: Callable[..., None], settings: Any = None) -> list[Parameter]:
    """All that a command is told, its settings last."""
    # Their type need not be known to the command's module.
    types = {type(settings).__name__: type(settings)}
    hints = get_type_hints(command, localns=types, include_extras=True)
    docs = _argument_docs(command)
    own = [
        Parameter(
            name, hints[name], MISSING if p.default is p.empty else p.default, docs.get(name, "")
        )
        for name, p in inspect.signature(command).parameters.items()
        if name != "settings"
    ]
    return own if settings is None else own + _fields(settings)


def _fields(settings: Any) -> list[Parameter]:
    cls = type(settings)
    hints, docs = get_type_hints(cls, include_extras=True), _field_docs(cls)
    return [
        Parameter(f.name, hints[f.name], getattr(settings, f.name), docs.get(f.name, ""))
        for f in fields(cls)
        if f.metadata.get("flag", True)
    ]


def _parser(parameters: Iterable[Parameter]) -> Parser:
    """Of the flags alone; what is not given is left out of the result."""
    parser = Parser(argument_default=argparse.SUPPRESS)
    for parameter in parameters:
        if parameter.has_flag:
            _add(parser, parameter)
    return parser


def _add(parser: argparse._ActionsContainer, parameter: Parameter) -> None:
    options: dict[str, Any] = {"dest": parameter.name, "default": argparse.SUPPRESS}
    options["help"] = _described(parameter).replace("%", "%%")
    if bare(parameter.kind) is bool:
        parser.add_argument(parameter.flag, action=argparse.BooleanOptionalAction, **options)
        return
    options |= {"type": partial(_converted, parameter.kind), "metavar": _metavar(parameter.kind)}
    if parameter.is_list:
        options |= {"nargs": "*", "action": "extend"}
    parser.add_argument(parameter.flag, **options)


def _with_dashes(word: str) -> str:
    """A flag as we write it: --save_dir=a_b as --save-dir=a_b."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if _is_flag(word) else word


def _is_flag(word: str) -> bool:
    """Whether it can be a flag at all: a text with a space, and a number, are values."""
    return re.match(r"--?[^\W\d][\w-]*(=|\Z)", word) is not None


# What is wrong


def _check_flags(
    title: str,
    rest: Iterable[str],
    parameters: Sequence[Parameter],
    other_flags: Collection[str],
    arguments: Sequence[str],
) -> None:
    """That no flag is left over."""
    unknown = next((word for word in rest if word[:1] == "-" and word != "-"), None)
    if unknown is None:
        return
    written = next(word for word in arguments if _with_dashes(word) == unknown)
    flag = written.partition("=")[0] if _is_flag(written) else written
    if flag[:2] != "--" or not _is_flag(written):
        raise ValueError(
            f"{title} has no flag {flag!r:.{_CUT}}, see hypernoise {title} --help; a value that "
            f"begins with - is joined to its flag, as in --prompts=-a"
        )
    name = _with_dashes(flag)
    if any(p.flag == name for p in parameters):
        raise ValueError(
            f"{title} has no flag {flag}, it is given without one: {_usage(title, parameters)}"
        )
    flags = [flag for p in parameters for flag in p.flags] + [_with_dashes(f) for f in other_flags]
    near = difflib.get_close_matches(name, flags, 1)
    if near and "_" in flag:
        near[0] = f"--{near[0][2:].replace('-', '_')}"
    hint = f": did you mean {near[0]}?" if near else f", see hypernoise {title} --help"
    raise ValueError(f"{title} has no flag {flag:.{_CUT}}{hint}")


def _places(title: str, parameters: Iterable[Parameter], words: Sequence[str]) -> dict[str, Any]:
    """What is given without flags, by the names of the parameters."""
    left, values = list(words), {}
    for parameter in parameters:
        if parameter.has_flag:
            continue
        name = parameter.name.upper()
        taken, left = (left, []) if parameter.is_list else (left[:1], left[1:])
        try:
            read = [_converted(parameter.kind, word) for word in taken]
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from None
        if not (read or parameter.is_list):
            raise ValueError(f"{title} needs {name}: {_usage(title, parameters)}")
        values[parameter.name] = tuple(read) if parameter.is_list else read[0]
    if left:
        raise ValueError(
            f"{title} does not take {left[0]!r:.{_CUT}}, see hypernoise {title} --help"
        )
    return values


def _converted(kind: Any, text: str) -> Any:
    """One word of the command line; None takes back what a config file says."""
    if text == "None" and bare(kind) is not kind:
        return None
    kind = bare(kind)
    try:
        return read_value(get_args(kind)[0] if get_origin(kind) is tuple else kind, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# Help


def _help(title: str, command: Callable[..., None], parameters: Sequence[Parameter]) -> str:
    description = inspect.getdoc(command).partition("\nArgs:\n")[0].strip()
    parser = Parser(usage=_usage(title, parameters).replace("%", "%%"), description=description)
    for parameter in parameters:
        if not parameter.has_flag:
            text = _described(parameter).replace("%", "%%")
            parser.add_argument(parameter.name, metavar=parameter.name.upper(), help=text)
    flags = parser.add_argument_group("flags")
    for parameter in parameters:
        if parameter.has_flag:
            _add(flags, parameter)
    return parser.format_help().rstrip()


def _usage(title: str, parameters: Iterable[Parameter]) -> str:
    names = [p.name.upper() + " ..." * p.is_list for p in parameters if not p.has_flag]
    return " ".join(["hypernoise", title, *names, "[flags]"])


def _metavar(kind: Any) -> str:
    kind = bare(kind)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    return "TEXT" if kind is str or kind == Place else kind.__name__.upper()


def _described(parameter: Parameter) -> str:
    """Its sentence, with the default where the sentence does not tell it."""
    default = parameter.default
    if default in (MISSING, None, ()) or "efault:" in parameter.help:
        return parameter.help
    if isinstance(default, bool):
        return f"{parameter.help} (default: {'yes' if default else 'no'})"
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{parameter.help} (default: {shown})"


def _argument_docs(command: Callable[..., None]) -> dict[str, str]:
    """The sentences below `Args:` in its docstring."""
    listed = inspect.getdoc(command).partition("\nArgs:\n")[2]
    return {name: _one_line(text) for name, text in _ARGUMENT.findall(listed)}


def _field_docs(cls: type) -> dict[str, str]:
    """The texts below the fields of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id: _one_line(text.value.value)
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())
