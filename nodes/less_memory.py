"""For a pass that did not fit into memory: free memory, and run it one image at a time."""

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from .conditioning import map_tensors


def free_memory(guider: comfy.samplers.CFGGuider, device: torch.device) -> None:
    """Unload all models except those that the guider is sampling with."""
    management = comfy.model_management
    used = [patcher.model for patcher in (guider.model_patcher, *guider.loaded_models)]
    keep = [
        loaded
        for loaded in management.current_loaded_models
        if loaded.model is not None and any(loaded.model.model is model for model in used)
    ]
    # More bytes than any device has, so that all the others go.
    management.free_memory(1e30, device, keep_loaded=keep)
    management.soft_empty_cache()


def prompt_of_images(prompt: Sequence[dict[str, Any]], images: Sequence[int]) -> list[dict]:
    """The conditioning of some of a batch's images.

    Args:
        prompt: conditioning dicts of a sampler. Tensors with fewer rows than the batch has images
            are repeated, as in ComfyUI.
        images: their indices in the batch.
    """

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[[image % len(tensor) for image in images]] if tensor.ndim > 0 else tensor

    return [map_tensors(rows, cond, constants=False) for cond in prompt]
