"""The autoencoder of tiny-sprint, trained on drawn scenes."""

import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

from ...progress import progress_bar
from .generator import build_vae
from .optimization import MuonAdamW
from .pool import Pool

_BATCH = 32
_NOISE = 0.15  # added to the latents in training, so that slightly wrong latents decode well
_REFINING_NOISE = 0.08
_MOMENT_WEIGHT = 0.02  # pulls each latent channel to mean 0 and variance 1


def train_autoencoder(pool: Pool, *, steps: int, seed: int) -> AutoencoderDC:
    """Trains the autoencoder and sets its scaling factor to 1 / the standard deviation."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = MuonAdamW([vae], steps=steps, adamw_lr=2e-3, muon_lr=2e-3)
    for step in (bar := progress_bar(range(steps), desc="autoencoder", mininterval=5)):
        images = pool.batch(rng.choices(range(len(pool)), k=_BATCH)) * 2 - 1
        latents = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
        decoded = vae.decode(latents + _NOISE * torch.randn_like(latents)).sample
        error = F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images)
        optimizer.step(error + _MOMENT_WEIGHT * _moments(latents))
        if step % 50 == 0:
            bar.set_postfix_str(f"error {error.item():.4f}, latent std {latents.std():.2f}")
    vae = vae.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    spread = encode_pool(vae, pool, 2048).std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 4))
    return vae


def refine_decoder(vae: AutoencoderDC, pool: Pool, *, steps: int, seed: int) -> AutoencoderDC:
    """Trains only the decoder further, so that the latents stay the same for the generator."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vae.to(memory_format=torch.channels_last)
    vae.decoder.requires_grad_(True)
    optimizer = MuonAdamW([vae.decoder], steps=steps, adamw_lr=1.5e-3, muon_lr=1.5e-3)
    for step in (bar := progress_bar(range(steps), desc="decoder", mininterval=5)):
        images = pool.batch(rng.choices(range(len(pool)), k=_BATCH)) * 2 - 1
        with torch.no_grad():
            latents = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
        decoded = vae.decode(latents + _REFINING_NOISE * torch.randn_like(latents)).sample
        error = F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images)
        optimizer.step(error)
        if step % 50 == 0:
            bar.set_postfix_str(f"error {error.item():.4f}")
    return vae.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)


def _moments(latents: Tensor) -> Tensor:
    """Squared distance of each channel's mean and standard deviation from 0 and 1."""
    channels = latents.transpose(0, 1).flatten(1)
    return channels.mean(1).pow(2).mean() + (channels.std(1) - 1).pow(2).mean()


@torch.no_grad()
def encode_pool(vae: AutoencoderDC, pool: Pool, count: int) -> Tensor:
    """Latents (count, C, h, w) of the first images in the pool, times the scaling factor."""
    chunks = range(0, min(count, len(pool)), 256)
    latents = [
        vae.encode(pool.batch(list(range(i, min(i + 256, count, len(pool))))) * 2 - 1).latent
        for i in chunks
    ]
    return torch.cat(latents) * vae.config.scaling_factor
