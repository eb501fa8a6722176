"""SANA's DC-AE autoencoder as a ComfyUI VAE that the stock decode and encode nodes accept."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as management
import comfy.sd
import torch

from ...hypernoise_core.library_folder import building_from
from ..comfy_model import WholeModelPatcher
from .diffusers_library import diffusers, from_folder

DTYPES = [torch.bfloat16, torch.float32]  # float16 is not among those DC-AE was published in


def load(folder: Path, dtype: torch.dtype | None, variant: str | None = None) -> "SanaVAE":
    """The VAE of a SANA-Sprint folder; dtype None picks one for the device, variant None the
    weights without one."""
    dtype = dtype or management.vae_dtype(management.vae_device(), DTYPES)
    with building_from(folder / "vae"):
        autoencoder = diffusers().AutoencoderDC.from_pretrained(
            folder, subfolder="vae", **from_folder(dtype, variant)
        )
    vae = SanaVAE(autoencoder, dtype)
    vae.patcher.with_factory(lambda: load(folder, dtype, variant).patcher)
    return vae


class FirstStage(torch.nn.Module):
    """AutoencoderDC with tensors in and out, as comfy.sd.VAE calls its model."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> unscaled latents (B, C, H / ratio, W / ratio)."""
        return self.autoencoder.encode(images, return_dict=False)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Unscaled latents (B, C, h, w) -> (B, 3, h * ratio, w * ratio) in about [-1, 1]."""
        return self.autoencoder.decode(latents, return_dict=False)[0]


class SanaVAE(comfy.sd.VAE):
    """ComfyUI's VAE (batches, tiles, memory) around a network that it does not know itself."""

    def __init__(self, autoencoder: torch.nn.Module, dtype: torch.dtype) -> None:
        with _without_log_line("No VAE weights detected"):
            super().__init__(sd={})  # every setting of this ComfyUI at its default, no network
        config = autoencoder.config
        ratio = 2 ** (len(config.encoder_block_out_channels) - 1)
        self.first_stage_model = FirstStage(autoencoder)
        self.working_dtypes = DTYPES
        self.vae_dtype = dtype
        self.downscale_ratio = self.upscale_ratio = ratio
        self.latent_channels = config.latent_channels
        self.memory_used_encode = lambda shape, dtype: _memory(shape[2] * shape[3], dtype)
        self.memory_used_decode = lambda shape, dtype: _memory(
            shape[2] * shape[3] * ratio**2, dtype
        )
        self.device = management.vae_device()
        self.output_device = management.intermediate_device()
        self.patcher = WholeModelPatcher(
            self.first_stage_model, self.device, management.vae_offload_device()
        )


def _memory(pixels: int, dtype: torch.dtype) -> int:
    """Bytes that one image of so many pixels takes on its way through the network.

    Counted on the published DC-AE: 900 values alive per pixel, decoding and encoding.
    """
    return pixels * 1100 * management.dtype_size(dtype)


@contextmanager
def _without_log_line(text: str) -> Iterator[None]:
    """Leave out log lines with `text`."""

    def keep(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)
