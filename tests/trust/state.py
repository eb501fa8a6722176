"""What must be the same behind a pass, and faults inside one."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Fault(Exception):
    """Stands for whatever may go wrong."""


class FaultAt(TorchDispatchMode):
    """Raises at the n-th operation on tensors inside, and at `times - 1` behind it.

    Every operation that needs memory is one of them.
    """

    def __init__(self, operation: int, error: Callable[[], Exception], times: int = 1) -> None:
        super().__init__()
        self.first, self.error, self.times = operation, error, times
        self.count = 0

    @property
    def struck(self) -> bool:
        return self.count >= self.first

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.first <= self.count < self.first + self.times:
            raise self.error()
        return func(*args, **(kwargs or {}))


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (simulated)")


@dataclass
class State:
    """A network's parameters and buffers, as objects and as values, and its hooks."""

    tensors: dict[tuple[int, str], tuple[Tensor, Tensor]]
    hooks: int

    @classmethod
    def of(cls, network: nn.Module) -> "State":
        return cls(
            {place: (t, t.detach().cpu().clone()) for place, t in _tensors(network)},
            count_hooks(network),
        )

    def check(self, network: nn.Module) -> None:
        """Raises AssertionError unless it is this network with the same bits."""
        now = dict(_tensors(network))
        assert now.keys() == self.tensors.keys(), "parameters came or went"
        for place, (tensor, value) in self.tensors.items():
            assert now[place] is tensor, f"{place[1]} is another tensor"
            assert torch.equal(now[place].cpu(), value), f"{place[1]} has other bits"
        assert count_hooks(network) == self.hooks, "hooks were left"


def _tensors(network: nn.Module) -> list[tuple[tuple[int, str], Tensor]]:
    return [
        ((id(module), f"{path}.{name}"), tensor)
        for path, module in network.named_modules()
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]


def count_hooks(network: nn.Module) -> int:
    return sum(len(getattr(module, name)) for module in network.modules() for name in _HOOKS)


def count_tensors() -> int:
    """Tensors that are alive, once all garbage is gone."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
