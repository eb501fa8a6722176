"""Seconds, memory and FLOPs of a call, for all benchmarks."""

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


_IN_PLACE = {  # ignored by torch's counter
    torch.ops.aten.addmm_: _product,
    torch.ops.aten.baddbmm_: _product,
}


def synchronise(device: str | torch.device) -> None:
    """Waits until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def medians(
    runs: Mapping[str, Run], repeats: int, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Seconds of each run: medians of alternating calls, after a warm-up call.

    The order is reversed every other time, as a call that follows a long one is slower.
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
    """FLOPs as torch counts them: matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def lora_flops(
    layers: Mapping[str, nn.Module], branches: Mapping[str, LoraBranch], run: Run
) -> int:
    """FLOPs that branches next to the layers, B (A x), would add to a call of the plain layers.

    This is the bound for passes, regardless of how the branches are actually computed.
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
    """Peak memory of the call in bytes, beyond what was in use before it.

    On a GPU, what its allocator reports; elsewhere, the tensors created by the call.
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
