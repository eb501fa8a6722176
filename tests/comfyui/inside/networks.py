"""Networks of diffusers as ComfyUI MODELs, through ComfyUI's own loaders."""

from typing import Any

import comfy.model_base
import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

CPU = torch.device("cpu")


def as_model(network: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """The MODEL of a FLUX transformer, or of a UNet or a Z-Image, which are always in float32.

    A UNet with a second embedding is SDXL's, any other SD 2's.
    """
    state = {name: weight.clone() for name, weight in network.state_dict().items()}
    if type(network).__name__ == "UNet2DConditionModel":
        return _unet(network.config, state)
    if type(network).__name__ == "ZImageTransformer2DModel":
        return _z_image(network.config, state)
    return comfy.sd.load_diffusion_model_state_dict(state, {"dtype": dtype})


def _unet(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """ComfyUI's UNet of any size; its loader knows the published sizes only."""
    depth = [config.transformer_layers_per_block] * config.layers_per_block
    attention = [kind.startswith("CrossAttn") for kind in config.down_block_types]
    blocks = len(attention)
    sizes = {
        "num_res_blocks": [config.layers_per_block] * blocks,
        "channel_mult": [c // config.block_out_channels[0] for c in config.block_out_channels],
        "transformer_depth": [d * has for has in attention for d in depth],
        "transformer_depth_output": [d * has for has in attention for d in (*depth, depth[0])],
        "transformer_depth_middle": depth[0],
    }
    keys = comfy.utils.unet_to_diffusers(sizes)
    state = {keys[name]: weight for name, weight in state.items()}
    detected = comfy.model_detection.detect_unet_config(state, "")
    assert {key: detected[key] for key in sizes} == sizes
    # UNet2DConditionModel's attention_head_dim is the number of heads.
    heads = {"num_heads": config.attention_head_dim, "num_head_channels": -1}
    is_sdxl = config.addition_embed_type == "text_time"
    kind = comfy.supported_models.SDXL if is_sdxl else comfy.supported_models.SD20
    settings = kind({**detected, **heads})
    settings.unet_config.update(heads)
    settings.custom_operations = _operations(config.norm_num_groups)
    settings.set_inference_dtype(torch.float32, None)
    base = comfy.model_base.SDXL if is_sdxl else comfy.model_base.BaseModel
    model = base(settings, comfy.model_base.ModelType.EPS, device=CPU)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def _z_image(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """ComfyUI's Z-Image of any size; its loader knows the published size only."""
    state = comfy.model_detection.convert_diffusers_mmdit(state, "")
    settings = comfy.supported_models.ZImage(
        {
            **comfy.model_detection.detect_unet_config(state, ""),
            "n_refiner_layers": config.n_refiner_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "axes_dims": config.axes_dims,
            "axes_lens": config.axes_lens,
            "rope_theta": config.rope_theta,
            "ffn_dim_multiplier": 8 / 3,
            "multiple_of": 1,
            "z_image_modulation": True,
            "time_scale": config.t_scale,
            "pad_tokens_multiple": 32,
        }
    )
    settings.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.Lumina2(settings, device=CPU)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def _operations(groups: int) -> type:
    """ComfyUI's layers with another number of groups; it has 32 everywhere."""

    class Operations(comfy.ops.disable_weight_init):
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any):
                super().__init__(groups, num_channels, *args, **kwargs)

    return Operations
