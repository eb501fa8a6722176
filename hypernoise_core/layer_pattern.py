"""The patterns by which a LoRA configuration names layers, matched without backtracking.

peft accepts any regular expression, and some short ones take years to match. This module supports
the subset that is used in practice, with a parser and a matcher that reads a name once and tracks
the set of all possible positions. Everything outside the grammar is refused, so new syntax in
Python's regular expressions has no effect.

    pattern  = sequence ("|" sequence)*
    sequence = (character repeat? | group "?"? | "^" | "$")*
    group    = ("(" | "(?:") pattern ")"
    repeat   = ("*" | "+" | "?") "?"?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import PatternError

FORMS = r"names, \. . \d \w [0-9] with * + or ? after one of these, (a|b), (a)?, ^ and $"
"""The supported syntax, for error messages."""
DEEPEST = 20
"""Maximum nesting of groups."""

_TOKEN = re.compile(
    r"""
    (?P<group>\((?:\?:)?) | (?P<end>\)\??) | (?P<choice>\|) | (?P<anchor>[\^$])
    | (?:
        (?P<literal>\\[!-/:-@\[-`{-~\ ] | [^\\.^$*+?{}\[\]()|])
        | (?P<kind>\. | \\[dw] | \[\^?(?:\w-\w | \\[dw.-] | [\w.])+-?\])
      )
      (?P<repeat>[*+?])?
      (?(repeat)\??)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class _Text:
    """Literal characters."""

    text: str


@dataclass(frozen=True)
class _Kind:
    """One matching character, or as many as `repeat` allows."""

    fits: re.Pattern[str]
    repeat: str | None


@dataclass(frozen=True)
class _Anchor:
    """The beginning or the end of the name."""

    sign: str


@dataclass(frozen=True)
class _Choice:
    """One of several sequences, or nothing if it is optional."""

    sequences: Sequence[Sequence[_Item]]
    optional: bool = False


_Item = _Text | _Kind | _Anchor | _Choice


class LayerPattern:
    """A pattern for layer names, as peft accepts it.

    Raises:
        PatternError: it is outside the grammar.
    """

    def __init__(self, pattern: str) -> None:
        self._choice, self._spreads = _parse(pattern)
        self._items = _count(self._choice)

    def steps(self, names: Iterable[str]) -> int:
        """Upper bound on the steps needed to match all of these names."""
        places = (len(name) if self._spreads else name.count(".") for name in names)
        return self._items * sum(place + 2 for place in places)

    def matches(self, name: str) -> bool:
        r"""Whether `re.match(rf"(.*\.)?({pattern})$", name)` matches, which is peft's rule: the
        pattern must match the whole name, or everything after one of its dots."""
        first_line = name.split("\n", 1)[0]
        starts = {0, *(i + 1 for i, character in enumerate(first_line) if character == ".")}
        return not _ends(name).isdisjoint(_after(self._choice, name, starts))


def _parse(pattern: str) -> tuple[_Choice, bool]:
    """The parsed pattern, and whether it contains a * or +."""
    open_choices: list[list[list]] = [[[]]]
    place = 0
    spreads = False
    while place < len(pattern):
        token = _TOKEN.match(pattern, place)
        if token is None:
            raise PatternError(f"{pattern[place : place + 20]!r} is not supported")
        place = token.end()
        sequence = open_choices[-1][-1]
        if token["group"]:
            if len(open_choices) > DEEPEST:
                raise PatternError(f"it nests more than {DEEPEST} groups")
            open_choices.append([[]])
        elif token["end"]:
            if len(open_choices) == 1:
                raise PatternError("it closes a group that was never opened")
            closed = _Choice(open_choices.pop(), token["end"] == ")?")
            open_choices[-1][-1].append(closed)
        elif token["choice"]:
            open_choices[-1].append([])
        elif token["anchor"]:
            sequence.append(_Anchor(token["anchor"]))
        elif token["literal"] and not token["repeat"]:
            sequence.append(token["literal"][-1])
        else:
            spreads |= token["repeat"] in ("*", "+")
            sequence.append(_Kind(_one(token["literal"] or token["kind"]), token["repeat"]))
    if len(open_choices) > 1:
        raise PatternError("it opens a group that is never closed")
    return _joined(_Choice(open_choices[0])), spreads


def _one(source: str) -> re.Pattern[str]:
    """A character or a character class, without repetition."""
    try:
        return re.compile(source)
    except re.error as error:  # [z-a]
        raise PatternError(f"{source!r} is not a set of characters") from error


def _joined(choice: _Choice) -> _Choice:
    """The same, with consecutive literal characters joined."""
    sequences = []
    for sequence in choice.sequences:
        joined, text = [], []
        for item in [*sequence, None]:
            if isinstance(item, str):
                text.append(item)
                continue
            if text:
                joined.append(_Text("".join(text)))
                text = []
            if item is not None:
                joined.append(_joined(item) if isinstance(item, _Choice) else item)
        sequences.append(joined)
    return _Choice(sequences, choice.optional)


def _count(item: _Item) -> int:
    """The number of items in it, including itself."""
    if not isinstance(item, _Choice):
        return 1
    return 1 + sum(1 + sum(map(_count, sequence)) for sequence in item.sequences)


def _ends(name: str) -> set[int]:
    """Where `$` matches: at the end, and before a final newline."""
    return {len(name), len(name) - name.endswith("\n")}


def _after(item: _Item, name: str, places: set[int]) -> set[int]:
    """Where matches of the item may end that start at one of these positions in the name."""
    if isinstance(item, _Text):
        size = len(item.text)
        return {place + size for place in places if name.startswith(item.text, place)}
    if isinstance(item, _Anchor):
        return places & ({0} if item.sign == "^" else _ends(name))
    if isinstance(item, _Kind):
        return _after_kind(item, name, places)
    found = set(places) if item.optional else set()
    for sequence in item.sequences:
        reached = places
        for part in sequence:
            reached = _after(part, name, reached)
            if not reached:
                break
        found |= reached
    return found


def _after_kind(item: _Kind, name: str, places: set[int]) -> set[int]:
    once = {place + 1 for place in places if item.fits.match(name, place)}
    if item.repeat is None:
        return once
    if item.repeat == "?":
        return places | once
    found: set[int] = set()
    for place in range(min(once, default=len(name)), len(name) + 1):
        if place in once or (place - 1 in found and item.fits.match(name, place - 1)):
            found.add(place)
    return found | places if item.repeat == "*" else found
