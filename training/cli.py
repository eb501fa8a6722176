"""The command line: `hypernoise COMMAND`. Only the command that runs is imported."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module, metadata
from typing import Any, NamedTuple

from ..hypernoise_core.errors import HypernoiseError
from ..hypernoise_core.text import printable
from .versions import describe_versions


class Command(NamedTuple):
    """A command: the function `run` of the module in commands/ that has its name."""

    summary: str
    settings: str
    """Name of a class in commands/settings.py."""


COMMANDS = {
    "demo": Command("Train and evaluate on the embedded generator, in minutes.", "DemoConfig"),
    "train": Command("Train a noise hypernetwork, or a LoRA on the generator.", "TrainCommand"),
    "evaluate": Command(
        "Compare a hypernetwork with other ways to spend compute on better images.",
        "EvaluationConfig",
    ),
    "card": Command("Write a Hugging Face model card for an adapter.", "CardConfig"),
    "generate": Command("Write images with and without a hypernetwork.", "GenerateConfig"),
    "reno": Command("Optimise noise for a reward, one image at a time (ReNO).", "RenoCommand"),
    "score": Command("Score a folder of images with rewards.", "ScoreConfig"),
    "export": Command("Write an adapter as a smaller file for ComfyUI.", "ExportConfig"),
    "download": Command("Download the weights of rewards.", "DownloadConfig"),
    "info": Command("Print what an adapter file contains.", "InfoConfig"),
}


def main() -> None:
    """Runs the command that sys.argv names; bad input ends in one line and exit code 2."""
    name, *words = sys.argv[1:] or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(_overview())
        elif name == "--version":
            print("\n".join(describe_versions()))
        else:
            settings = _read(name, words)
            _module(f"commands.{name}").run(settings)
    except (HypernoiseError, ValueError, OSError, ImportError) as error:
        print(f"hypernoise: {printable(_in_words(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as interrupt:
        print("hypernoise: interrupted", file=sys.stderr)
        raise SystemExit(130) from interrupt
    except Exception:
        sys.excepthook(*sys.exc_info())
        print(
            "hypernoise: unexpected error; please report the lines above with the output of "
            f"hypernoise --version{_where()}",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


def _overview() -> str:
    lines = [f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()]
    usage = ["Usage: hypernoise COMMAND ...", "       hypernoise COMMAND --help"]
    return "\n".join([*usage, "       hypernoise --version", "", *lines])


def _read(name: str, words: list[str]) -> Any:
    """The settings of a command."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {name!r:.60}: {hint}")
    command = COMMANDS[name]
    kind = getattr(_module("commands.settings"), command.settings)
    return _module("settings").read_settings(kind, words, name, command.summary)


def _module(name: str) -> Any:
    return import_module(f"{__package__}.{name}")


def _where() -> str:
    """Where to report a bug, from pyproject.toml."""
    try:
        links = metadata.metadata("hypernoise").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    return next((f": {link.partition(', ')[2]}" for link in links if "Bug" in link), "")


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f'{error.name} is missing: pip install "hypernoise[train]"'
    return str(error)


if __name__ == "__main__":  # `accelerate launch -m hypernoise.training.cli`
    main()
