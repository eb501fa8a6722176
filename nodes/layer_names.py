"""Where ComfyUI stores the layers that an adapter lists under diffusers' names.

ComfyUI has tables for the LoRAs of every model family that it supports. The same tables locate
the layers of a hypernetwork. Several may be slices of one fused layer, some with scale and shift
swapped.
"""

from collections.abc import Iterable

import comfy.lora
import comfy.utils
from comfy.model_base import BaseModel, Lumina2

from ..hypernoise_core.errors import AdapterError
from ..hypernoise_core.hypernetwork import own_targets
from ..hypernoise_core.lora import modules_by_name
from ..hypernoise_core.lora_branch import LoraTarget

_NETWORK = "diffusion_model."


def layer_targets(model: BaseModel, names: Iterable[str]) -> dict[str, LoraTarget]:
    """Where the named layers are in the model's network; names that are not found are left out.

    Raises:
        AdapterError: ComfyUI stores a layer in a form that a hypernetwork cannot act on.
    """
    names = list(names)
    modules = modules_by_name(model.diffusion_model)
    if all(name in modules for name in names):
        return own_targets(names)
    table = comfy.lora.model_lora_keys_unet(model, {})
    targets = {}
    for name in names:
        flat = name.replace(".", "_")
        spellings = (f"transformer.{name}", f"lora_unet_{flat}", f"lycoris_{flat}")
        if key := next((key for key in spellings if key in table), None):
            targets[name] = _target(name, table[key])
        elif name in modules:
            targets[name] = LoraTarget(name)
    return targets


def output_sign(model: BaseModel) -> int:
    """1, or -1 where ComfyUI's network returns the negative of what diffusers' network does.

    Its NextDiT (Lumina 2, Z-Image) does, where diffusers' pipelines turn the sign later.
    """
    return -1 if isinstance(model, Lumina2) else 1


def _target(name: str, entry: str | tuple) -> LoraTarget:
    """From an entry of ComfyUI's table: a weight's key, or (key, (dim, offset, size), function)."""
    key, cut, function = (
        (*entry, None, None)[:3] if isinstance(entry, tuple) else (entry, None, None)
    )
    module = key.removeprefix(_NETWORK).removesuffix(".weight")
    dim, offset, size = cut or (0, 0, None)
    if dim != 0 or function not in (None, comfy.utils.swap_scale_shift):
        raise AdapterError(f"ComfyUI stores layer {name} in {key} in a form that is not supported")
    return LoraTarget(module, offset, size, swap_halves=function is not None)
