"""LoRA branches inside a layer's weight, W + alpha / rank B A, for one call of the layer.

A branch beside the layer costs in proportion to the positions (tokens, pixels) that the layer sees,
the sum of the weights only in proportion to its size. So it is the cheaper way for small layers and
large images. The layer's own weight is not written to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .lora_branch import Placement

_CHANNELS_LAST = (0, 2, 3, 1)
"""The dimensions of a weight in that memory layout, in memory order."""


def break_even(placements: Sequence[Placement]) -> float:
    """The positions from which on branches cost less inside the weight than beside the layer."""
    inside = beside = 0  # multiplications, the latter for one position
    for _, branch in placements:
        up, down = branch.up, branch.down
        inside += up.shape[0] * down.numel()
        beside += up.numel() + down.numel()
    return inside / beside


def can_merge(layer: nn.Module, features: Tensor, break_even: float) -> bool:
    """Whether `merged_weight` is the cheaper way for this input, and possible.

    It is not for weights that one cannot add to: elsewhere, quantised, of another dtype than the
    input, of a grouped convolution, or changed by ComfyUI at each call.

    Args:
        layer: a Linear or a Conv2d.
        features: its input.
    """
    weight = layer._parameters.get("weight")  # not layer.weight, which may compute it
    if type(weight) is not nn.Parameter or weight.dtype != features.dtype:
        return False
    positions = features.numel() / weight.shape[1]
    if weight.ndim == 4:
        if layer.groups != 1 or layer.padding_mode != "zeros":
            return False
        positions /= layer.stride[0] * layer.stride[1]
    changed = getattr(layer, "weight_function", None)
    return positions >= break_even and weight.device == features.device and not changed


def merged_weight(weight: Tensor, placements: Sequence[Placement]) -> Tensor:
    """The weight of a layer with its branches in it.

    Args:
        weight: (o, i) or (o, i, kh, kw).

    Returns:
        The same shape in the same memory layout, which decides about the kernel that runs.
    """
    if weight.ndim == 2:
        return _rows_with_branches(weight, placements, None)
    if weight.is_contiguous():
        rows = _rows_with_branches(weight.flatten(1), placements, None)
        return rows.as_strided(weight.shape, weight.stride())  # 1 x 1 kernels are in both layouts
    lying = weight.permute(_CHANNELS_LAST)
    rows = _rows_with_branches(lying.flatten(1), placements, _CHANNELS_LAST)
    return rows.view(lying.shape).permute(0, 3, 1, 2)


def _rows_with_branches(
    rows: Tensor,
    placements: Sequence[Placement],
    order: tuple[int, ...] | None,
) -> Tensor:
    """The sum for a weight whose rows, (o, everything else), have this order of dimensions."""
    result = None
    for target, branch in placements:
        up, down = branch.up.to(rows), branch.down.to(rows)
        if order is not None:
            down = down.permute(order)
        if up.ndim == 4:
            up, down = up.flatten(1), down.flatten(1)
        up = target.placed(up)
        if len(up) == len(rows):
            rows = torch.addmm(rows, up, down, alpha=branch.scale)
            continue
        if result is None:
            rows = result = rows.clone()
        rows.narrow(0, target.offset, len(up)).addmm_(up, down, alpha=branch.scale)
    return rows
