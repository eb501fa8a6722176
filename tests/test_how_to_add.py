"""The lists of CONTRIBUTING.md, of the files that a new member takes, fit every member there is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.families import FAMILIES
from hypernoise.hypernoise_core.rewards import REWARDS
from hypernoise.training.cli import COMMANDS
from hypernoise.training.published_models import PUBLISHED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("hypernoise_core", "nodes", "training", "web", "locales", "workflows")
TEXTS = {".py", ".md", ".json", ".toml"}
ALWAYS, IF_IT_APPLIES = "Always:", "If it applies:"


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tokens_of(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The identifiers of a Python file, and its string literals without f-strings."""
    identifiers, literals = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(read(file)).readline):
        if token.type == tokenize.NAME:
            identifiers.add(token.string)
        elif token.type == tokenize.STRING and not re.match("r?f", token.string, re.IGNORECASE):
            literals.add(ast.literal_eval(token.string))
    return frozenset(identifiers), frozenset(literals)


@dataclass(frozen=True)
class Member:
    """One member of a registry."""

    name: str
    titles: tuple[str, ...] = ()
    """What texts may call it instead of its name."""
    identifiers: tuple[str, ...] = ()
    """What code calls it."""
    unmistakable: bool = True
    """Whether its name, as a text in the code, means nothing else."""
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the placeholders of the lists stand for, beside NAME."""

    def files(self, pattern: str) -> list[list[Path]]:
        """The files that a path of a list names; of each inner list, one is enough."""
        found = [pattern]
        for placeholder, values in {"NAME": (self.name,), **self.places}.items():
            if placeholder in pattern:
                found = [path.replace(placeholder, value) for path in found for value in values]
        return [sorted(ROOT.glob(path)) for path in found]

    def is_placed_by(self, pattern: str) -> bool:
        """Whether the path itself says which member the file is of."""
        return any(placeholder in pattern for placeholder in ("NAME", *self.places))

    def is_mentioned_in(self, text: str) -> bool:
        words = (self.name, *self.titles, *self.identifiers)
        return any(
            word in text and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)
            for word in words
        )

    def is_named_by_code_in(self, file: Path) -> bool:
        identifiers, literals = tokens_of(file)
        is_literal = self.unmistakable and self.name in literals
        return is_literal or not identifiers.isdisjoint(self.identifiers)


def families() -> Iterator[Member]:
    for family in FAMILIES:
        names = (type(family).__name__, family.name.upper())
        alone = family.name not in PUBLISHED
        yield Member(family.name, (family.title,), names, alone)


def published_models() -> Iterator[Member]:
    for name in PUBLISHED:
        yield Member(name, unmistakable=False)


def rewards() -> Iterator[Member]:
    for cls in REWARDS:
        module = cls.__module__.rpartition(".")[2]
        titles = (cls.title, cls.name.replace("-", "_"))
        alone = cls.name != "clip"  # also what ComfyUI calls a text encoder, and torch a function
        yield Member(cls.name, titles, (cls.__name__,), alone, {"MODULE": (module,)})


def nodes() -> Iterator[Member]:
    """Read from the source, which needs a running ComfyUI to be imported."""
    tree = ast.parse(read(ROOT / "nodes" / "__init__.py"))
    modules = {
        alias.name: node.module.replace(".", "/")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    (names,) = (node.value.elts for node in tree.body if isinstance(node, ast.AnnAssign))
    locales = tuple(sorted(path.name for path in (ROOT / "locales").iterdir()))
    for cls in (name.id for name in names):
        source = read(ROOT / "nodes" / f"{modules[cls]}.py").partition(f"class {cls}(")[2]
        node_id, title = (
            re.search(rf'{key}="(.+?)"', source)[1] for key in ("node_id", "display_name")
        )
        places = {"NODE": (node_id,), "MODULE": (modules[cls],), "LOCALE": locales}
        yield Member(node_id, (title,), (cls,), places=places)


def commands() -> Iterator[Member]:
    for name in COMMANDS:
        yield Member(name, unmistakable=False)


def metrics() -> Iterator[Member]:
    """What the table of adapters has columns for."""
    tree = ast.parse(read(ROOT / "training" / "evaluation" / "tables.py"))
    (function,) = (n for n in tree.body if getattr(n, "name", "") == "ablation_table")
    keys = {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "results"
    }
    for key in sorted(keys):
        if not key.endswith("_ci"):  # the interval of another one
            yield Member(key, unmistakable="_" in key)


def configs() -> Iterator[Member]:
    models = {"tiny-sprint", *PUBLISHED, *(cls.name for cls in REWARDS)}
    for path in sorted((ROOT / "training" / "configs").glob("*.toml")):
        yield Member(path.stem, unmistakable=path.stem not in models)


REGISTRIES: dict[str, Callable[[], Iterator[Member]]] = {
    "a family": families,
    "a published model": published_models,
    "a reward": rewards,
    "a node": nodes,
    "a command": commands,
    "a metric": metrics,
    "a config": configs,
}
MEMBERS = {kind: list(members()) for kind, members in REGISTRIES.items()}


def lists(kind: str) -> dict[str, list[str]]:
    """The paths that CONTRIBUTING.md lists for a new member of a kind, by their heading."""
    found: dict[str, list[str]] = {ALWAYS: [], IF_IT_APPLIES: []}
    contributing = read(ROOT / "CONTRIBUTING.md")
    section = contributing.partition(f"\n### How to add {kind}\n")[2].partition("\n#")[0]
    paths = None
    for line in section.splitlines():
        paths = found.get(line, paths)
        if line.startswith("- "):
            paths.extend(re.findall(r"`(.+?)`", line.partition(": ")[0]))
    return found


def package_files() -> Iterator[Path]:
    for folder in PACKAGE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in TEXTS:
                yield path


def relative(paths: set[Path]) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@pytest.mark.parametrize("kind", MEMBERS)
def test_every_member_has_what_is_always_needed(kind: str):
    always = lists(kind)[ALWAYS]
    assert always and MEMBERS[kind]
    for member in MEMBERS[kind]:
        for pattern in always:
            for files in member.files(pattern):
                assert files, f"{member.name} has no {pattern}"
                if not member.is_placed_by(pattern):
                    assert any(member.is_mentioned_in(read(file)) for file in files), (
                        f"{pattern} does not mention {member.name}"
                    )


@pytest.mark.parametrize("kind", MEMBERS)
def test_what_some_members_need_is_needed_by_one_at_least(kind: str):
    for pattern in lists(kind)[IF_IT_APPLIES]:
        assert any(
            member.is_mentioned_in(read(file))
            for member in MEMBERS[kind]
            for files in member.files(pattern)
            for file in files
        ), f"{pattern} mentions none of {', '.join(member.name for member in MEMBERS[kind])}"


@pytest.mark.parametrize("kind", MEMBERS)
def test_no_other_file_of_the_package_names_a_member(kind: str):
    """In its code; or, whatever the file, all of the members."""
    members = MEMBERS[kind]
    patterns = [path for paths in lists(kind).values() for path in paths]
    listed = {f for m in members for path in patterns for files in m.files(path) for f in files}
    naming = set()
    for file in package_files():
        in_code = file.suffix == ".py" and any(m.is_named_by_code_in(file) for m in members)
        if in_code or all(m.is_mentioned_in(read(file)) for m in members):
            naming.add(file)
    assert relative(naming - listed) == []
