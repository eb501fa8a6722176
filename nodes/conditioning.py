"""The one walk through ComfyUI's conditioning: dicts, lists, tuples and COND objects in each other.

A sampler's conditioning is a list of dicts, which hold tensors, plain values, and, by the name of
the network's input, `comfy.conds.CONDRegular` objects around tensors.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from comfy.conds import CONDConstant, CONDRegular


def children(value: Any) -> dict[Hashable, Any] | None:
    """What a dict, list, tuple or COND object holds, by key, index or attribute; None: neither."""
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
        constants: apply it to those of a CONDConstant too, which hold for a batch as a whole.
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
