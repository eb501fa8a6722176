"""Two ways of running a network that forward hooks need to know of: compiled and checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn


def run_eagerly(network: nn.Module) -> AbstractContextManager:
    """A context in which a compiled network, or compiled blocks of it, run as plain modules.

    Compiled code skips hooks added after compiling, or would freeze them into later calls.
    """
    if any(_is_compiled(module) for module in network.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def recomputed_inside(
    network: nn.Module, context: Callable[[], AbstractContextManager]
) -> Iterator[None]:
    """Let the blocks checkpointed in calls made here be recomputed inside `context` as well.

    diffusers' networks hand each checkpointed block to `_gradient_checkpointing_func`; backward
    calls the block again, long after the context that surrounded its first call has ended.
    """
    checkpointed = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    functions = [module._gradient_checkpointing_func for module in checkpointed]
    try:
        for module, function in zip(checkpointed, functions, strict=True):
            module._gradient_checkpointing_func = partial(_checkpoint, function, context)
        yield
    finally:
        for module, function in zip(checkpointed, functions, strict=True):
            module._gradient_checkpointing_func = function


def _checkpoint(function: Callable, context: Callable, block: Callable, *args: Any) -> Any:
    return function(_Inside(block, context), *args)


class _Inside:
    """A callable run inside a fresh context at each call; the checkpoint function keeps it."""

    def __init__(self, block: Callable, context: Callable[[], AbstractContextManager]) -> None:
        self.block = block
        self.context = context

    def __call__(self, *args: Any) -> Any:
        with self.context():
            return self.block(*args)
