"""Walks through ComfyUI's conditioning: nested dicts, lists, tuples and COND objects.

A sampler's conditioning is a list of dicts. These contain tensors, plain values, and one
`comfy.conds.CONDRegular` object around tensors for each input of the network.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from comfy.conds import CONDConstant, CONDRegular


def children(value: Any) -> dict[Hashable, Any] | None:
    """The items of a dict, list, tuple or COND object; None for everything else."""
    if isinstance(value, CONDRegular):  # and its subclasses
        return vars(value)
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return None


def map_tensors(
    function: Callable[[torch.Tensor], torch.Tensor], value: Any, constants: bool = True
) -> Any:
    """A copy of conditioning, or of a part of it, with `function` applied to each tensor.

    Args:
        constants: also apply it inside CONDConstant, whose values belong to the whole batch.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    inner = children(value)
    if inner is None or (isinstance(value, CONDConstant) and not constants):
        return value
    mapped = {key: map_tensors(function, item, constants) for key, item in inner.items()}
    if isinstance(value, CONDRegular):
        return value._copy_with(mapped["cond"])
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(mapped.values())
    return mapped
