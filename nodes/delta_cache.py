"""A cache of the deltas of a hypernetwork, so that running a graph again needs no new pass."""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Any

import torch

from .conditioning import children

_ENTRIES = 8  # latents, so a few megabytes at most
_NOT_READ = frozenset({"uuid"})  # of a prompt: new in every run, without effect


class UncacheableError(TypeError):
    """A prompt contains an object whose content cannot be compared."""


class DeltaCache:
    """The last deltas of one hypernetwork, on the CPU, by model, noise and prompt.

    Owners are the objects that make up the model; they are compared by identity and not kept alive.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[list[weakref.ref], torch.Tensor]] = OrderedDict()
        self._lock = Lock()  # threads with networks of their own may share a hypernetwork

    def find(self, owners: Sequence[object], key: Hashable) -> torch.Tensor | None:
        """The delta stored for this key and exactly these objects."""
        with self._lock:
            known, delta = self._entries.get(key, ([], None))
            if len(known) != len(owners) or any(
                ref() is not owner for ref, owner in zip(known, owners, strict=True)
            ):
                return None
            self._entries.move_to_end(key)
            return delta

    def keep(self, owners: Sequence[object], key: Hashable, delta: torch.Tensor) -> None:
        """Store a delta (B, C, H, W); the least recently used one is dropped.

        Nothing is stored if an owner does not allow weak references.
        """
        try:
            references = [weakref.ref(owner) for owner in owners]
        except TypeError:
            return
        with self._lock:
            self._entries[key] = (references, delta.cpu())
            self._entries.move_to_end(key)
            while len(self._entries) > _ENTRIES:
                self._entries.popitem(last=False)


def digest(value: Any) -> str:
    """A digest of the content of tensors, prompts (conditioning dicts) and plain values.

    Raises:
        UncacheableError: the value holds an object of a kind that is not known here.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        state.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif (inner := children(value)) is not None:
        state.update(f"{type(value).__name__} {len(inner)};".encode())
        for key in sorted(inner, key=str):
            if key not in _NOT_READ:
                state.update(f"{key}:".encode())
                _feed(state, inner[key])
    elif value is None or isinstance(value, (str, bytes, int, float, bool, torch.dtype)):
        state.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise UncacheableError(type(value).__name__)
