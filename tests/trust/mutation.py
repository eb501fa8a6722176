"""Broken versions of a good input: bytes, JSON trees and .safetensors files, always from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

INTERESTING_BYTES = [b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"]", b'"', b"\n"]
INTERESTING_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "0", "-1", "nan", "inf", "1e999", "9" * 5000, "F32", "I64",
    "F8_E4M3", "BF16", "sana_sprint", "flux", "nonsense", "..", "/etc/passwd", "a" * 600, "\0",
    "\ud800", "\u202e", "{}", "[]", '{"a": 1}', "(a+)+$", "(a|a)*", ".*" * 20, "[", "a{9999999999}",
    [], [0], [0, 0], [-1, 4], [2**62, 2**62], [4, 2], {}, {"a": 1}, {"(x+x+)+y": 3},
]  # fmt: skip
DEEP = 10_000


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, put in, cut out, moved or doubled, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(content) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64)), len(content) - at)
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at : at + length] = rng.choice(INTERESTING_BYTES)
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length]
        else:
            del content[at:]
    return bytes(content)


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON value with a few of its values, keys or items replaced, removed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return rng.choice(INTERESTING_VALUES)
        owner, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            owner[key] = copy.deepcopy(rng.choice(INTERESTING_VALUES))
        elif kind == 4:
            del owner[key]
        elif kind == 5 and isinstance(owner, dict):
            owner[_other_name(key, rng)] = owner.pop(key)
        elif kind == 6:
            other, other_key = rng.choice(places)
            if other_key in other if isinstance(other, dict) else other_key < len(other):
                owner[key] = copy.deepcopy(other[other_key])
        elif isinstance(owner[key], (int, float)):
            owner[key] = owner[key] * rng.choice((-1, 0, 2, 1000)) + rng.choice((-1, 0, 1))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key or index in it."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _other_name(name: str, rng: random.Random) -> str:
    return rng.choice(
        [
            f"base_model.model.{name}",
            f"unet.{name}",
            "unet." * 1000 + name,
            name.replace("lora_A", "lora_B"),
            name.replace("lora_B", "lora_up"),
            name.replace(".weight", ".other.weight"),
            name[:-1],
            name.upper(),
            "\x1b[31m" + name,
            rng.choice([value for value in INTERESTING_VALUES if isinstance(value, str)]),
        ]
    )


def to_json(tree: Any, rng: random.Random) -> str:
    """The tree as JSON, now and then with a key twice, or ten thousand brackets deep."""
    text = json.dumps(tree)
    kind = rng.randrange(50)
    if kind < 3 and text.startswith("{") and len(text) > 2:
        first = text[1:].split(",", 1)[0].rstrip("}")
        return "{" + first + "," + text[1:] if first.count("{") == 0 else text
    if kind == 3:
        return "[" * DEEP + text + "]" * DEEP
    return text


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A file whose header, header length or data are not what they should be."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    text = to_json(mutate_tree(header, rng), rng).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    stated = len(text)
    if rng.random() < 0.1:
        stated = rng.choice((0, 1, stated - 1, stated + 1, 2**31, 10 * 2**30, 2**63, 2**64 - 1))
    if rng.random() < 0.1:
        data = mutate_bytes(data, rng)
    return stated.to_bytes(8, "little") + text + data
