"""Seconds, memory and FLOPs of a call, as all benchmarks take them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hypernoise.hypernoise_core.lora_branch import LoraBranch
from hypernoise.training.memory import LiveBytes

Run = Callable[[], object]


def _product(added: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """FLOPs of the product of a (..., m, k) and b (..., k, n)."""
    return 2 * a.numel() * b[-1]


_IN_PLACE = {  # which torch's counter leaves out
    torch.ops.aten.addmm_: _product,
    torch.ops.aten.baddbmm_: _product,
}


def synchronise(device: str | torch.device) -> None:
    """Waits for what the device still has to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def medians(
    runs: Mapping[str, Run], repeats: int, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Seconds of each run: the medians of calls that take turns, after one to warm up.

    Every other time the order is the reverse: what runs behind a long call runs slower.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in list(runs.items())[:: -1 if repeat % 2 else 1]:
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def flops(run: Run) -> int:
    """What torch counts: products of matrices, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def lora_flops(
    layers: Mapping[str, nn.Module], branches: Mapping[str, LoraBranch], run: Run
) -> int:
    """What branches beside the layers, B (A x), would add to a call that runs the layers plainly.

    However the branches are computed in fact: this is the bound that passes are held against.
    """
    total = 0

    def count(branch: LoraBranch, layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        features = getattr(layer, "out_features", None) or layer.out_channels
        positions = output.numel() // features
        total += 2 * positions * (branch.down.numel() + branch.up.numel())

    hooks = [
        layers[name].register_forward_hook(partial(count, branch))
        for name, branch in branches.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return total


def peak_bytes(run: Run, device: str | torch.device = "cpu") -> int:
    """The most bytes in use at a time during the call beyond what was in use before it.

    On a GPU what its allocator handed out, elsewhere the tensors that the call made.
    """
    gc.collect()
    if torch.device(device).type != "cuda":
        with LiveBytes() as live:
            run()
        return live.peak
    synchronise(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronise(device)
    return torch.cuda.max_memory_allocated() - before
