"""How networks run while forward hooks are on them: compiled, checkpointed, in several threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_turns: WeakKeyDictionary[nn.Module, AbstractContextManager] = WeakKeyDictionary()
_turns_lock = Lock()


def turn_of(network: nn.Module) -> AbstractContextManager:
    """The reentrant lock of a network, for `with`.

    A hypernetwork's pass puts hooks on the frozen network, and every thread that runs the network
    meanwhile would run with them.
    """
    plain = network._modules.get("_orig_mod", network)  # torch.compile wraps it, in place of a copy
    with _turns_lock:
        return _turns.setdefault(plain, RLock())


def run_eagerly(modules: Collection[nn.Module]) -> AbstractContextManager:
    """A context in which a compiled network, or compiled blocks of it, run as plain modules.

    Compiled code skips hooks added after compiling, or would freeze them into later calls.

    Args:
        modules: all of the network.
    """
    compiled = [module for module in modules if _is_compiled(module)]
    if not compiled:
        return nullcontext()
    if hasattr(torch.compiler, "set_stance"):  # from torch 2.6 on
        return torch.compiler.set_stance("force_eager")
    return _uncompiled(compiled)


def _is_compiled(module: nn.Module) -> bool:
    # Not hasattr: to find out that there is none takes a module long, and there are hundreds.
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


@contextmanager
def _uncompiled(modules: Collection[nn.Module]) -> Iterator[None]:
    """Give compiled modules their plain calls for a while: torch below 2.6 has no switch for it."""
    wrappers = [module for module in modules if "_orig_mod" in module._modules]
    forwards = [module.forward for module in wrappers]
    calls = [module._compiled_call_impl for module in modules]
    try:
        for wrapper in wrappers:
            wrapper.forward = wrapper._orig_mod.__call__
        for module in modules:
            module._compiled_call_impl = None
        yield
    finally:
        for wrapper, forward in zip(wrappers, forwards, strict=True):
            wrapper.forward = forward
        for module, call in zip(modules, calls, strict=True):
            module._compiled_call_impl = call


@contextmanager
def recomputed_inside(
    modules: Collection[nn.Module], context: Callable[[], AbstractContextManager]
) -> Iterator[None]:
    """Let the blocks checkpointed in calls made here be recomputed inside `context` as well.

    Backward calls a checkpointed block again, long after the context of its first call has ended.
    diffusers' networks pass each such block to their attribute `_gradient_checkpointing_func`,
    which is replaced for a while: there is no public way to wrap a recomputation.

    Args:
        modules: all of the network.
    """
    checkpointed = [m for m in modules if vars(m).get("gradient_checkpointing", False)]
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


def checkpoint_block(block: nn.Module) -> None:
    """From now on the block's activations are recomputed in the backward pass.

    For networks that offer no gradient checkpointing of their own. Forward hooks inside the block
    have to be there in the backward pass as well.
    """
    if hasattr(block, "_forward_without_checkpoint"):
        return
    # On the instance, since a wrapping module would rename the block's parameters and hooks.
    forward = block._forward_without_checkpoint = block.forward

    def recomputing(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputing
