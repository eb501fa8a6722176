"""A command and its arguments: tyro reads the flags from the command's signature and docstring.

A mistake is told in one line that names the flag, where tyro itself draws a box.
"""

from __future__ import annotations

import difflib
import inspect
import io
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr
from functools import partial
from itertools import dropwhile, takewhile
from typing import Any, get_args, get_type_hints

import tyro

from .values import FLAGS, Place

_CUT = 60  # characters of a bad word in a message


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
        SystemExit: they hold --help, which is printed.
        ValueError: they hold what the command does not take, or lack what it needs; one line.
    """
    name, box = command.__name__, io.StringIO()
    # A text with a space is no flag, and tyro sees it when the space stands first.
    words = [f" {word}" if word.startswith("-") and " " in word else word for word in arguments]
    try:
        with redirect_stderr(box):
            bound, left_over = tyro.cli(
                _binder(command, settings),
                prog=f"hypernoise {name}",
                args=words,
                return_unknown_args=True,
                registry=FLAGS,
                config=(tyro.conf.PositionalRequiredArgs,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(f"{name}: {_in_one_line(box.getvalue())}") from None
    if left_over:
        known = [*_flags(command, settings), *other_flags]
        raise ValueError(f"{name} {_refusal(left_over[0], known, name)}")
    return bound


def _binder(command: Callable[..., None], settings: Any) -> Callable[..., Callable[[], None]]:
    """A function with the command's parameters that gives the command with their values."""

    def binder(**values: Any) -> Callable[[], None]:
        return partial(command, **values)

    parameters = dict(inspect.signature(command).parameters)
    # The command's module does not import these, so that it loads where a package is missing.
    own = {"Place": Place, type(settings).__name__: type(settings)}
    hints = get_type_hints(command, localns=own, include_extras=True)
    if settings is not None:
        parameters["settings"] = parameters["settings"].replace(default=settings)
        hints["settings"] = tyro.conf.OmitArgPrefixes[type(settings)]
    binder.__signature__ = inspect.Signature(list(parameters.values()))
    binder.__annotations__ = {name: hints[name] for name in parameters}
    binder.__doc__ = command.__doc__
    return binder


def _flags(command: Callable[..., None], settings: Any) -> list[str]:
    """All flags of a command, in the spelling of its parameters."""
    parameters = inspect.signature(command).parameters.values()
    names = [p.name for p in parameters if p.default is not p.empty]
    if settings is not None:
        types = get_type_hints(type(settings), include_extras=True)
        names += [n for n, t in types.items() if tyro.conf.Suppress not in get_args(t)]
    return [f"--{name}" for name in names]


def _refusal(word: str, flags: Sequence[str], name: str) -> str:
    """What is wrong with a word that no parameter of the command `name` has taken."""
    flag = word.partition("=")[0]
    near = difflib.get_close_matches(flag.replace("-", "_"), [f.replace("-", "_") for f in flags])
    if not word.startswith("-"):
        return f"does not take {word!r:.{_CUT}}, see hypernoise {name} --help"
    if not word.startswith("--"):
        return (
            f"has no flag {word!r:.{_CUT}}; a value that begins with - is joined to its flag, as "
            f"in --prompts=-a"
        )
    if not near:
        return f"has no flag {flag:.{_CUT}}, see hypernoise {name} --help"
    return f"has no flag {flag:.{_CUT}}: did you mean --{near[0].strip('_')}?"


def _in_one_line(box: str) -> str:
    """What is wrong, as tyro says it in a box: between the title and a rule, in one line."""
    rows = [row.strip("│ ") for row in box.splitlines()[1:]]
    return " ".join(takewhile(_is_text, dropwhile(_is_rule, rows)))


def _is_text(row: str) -> bool:
    return bool(row) and not _is_rule(row)


def _is_rule(row: str) -> bool:
    """Also of a terminal that has no such lines."""
    return bool(row) and not row.strip("╰╯─-")
