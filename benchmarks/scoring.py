"""Throughput of each reward, and the cost of a ReNO iteration relative to a generation.

    .venv/bin/python benchmarks/scoring.py [--full_size hps clip aesthetic imagereward] [--batch 8]

- `rewards`: `score_in_batches` for one batch without gradient, and score with gradient at the
  images, which training and ReNO need. The embedded reward and redness; with --full_size also the
  published rewards' networks (all if none is named), with their shapes and random weights: nothing
  is downloaded. PickScore has the same network as clip. Prompts are encoded beforehand.
- `reno`: ReNO on tiny-sprint with tiny-preference: an iteration relative to a plain generation,
  from noise to image, and to a scored generation.

Seconds are medians of alternating calls; MB (10^6 bytes) are the peak memory beyond what was in use
before. The last line of the output has all results as JSON.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import open_clip
import torch
from growth import Rows, choose_dtype, table
from passes import TINY
from timing import medians, peak_bytes
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from hypernoise.hypernoise_core.families import family_of_pipeline
from hypernoise.hypernoise_core.generate import encode_prompts
from hypernoise.hypernoise_core.hypernetwork import sample_noise
from hypernoise.hypernoise_core.reno import RenoConfig, RenoResult, optimise_noise
from hypernoise.hypernoise_core.rewards import Ensemble, Reward, load_rewards, score_in_batches
from hypernoise.hypernoise_core.rewards.aesthetic import Aesthetic
from hypernoise.hypernoise_core.rewards.clip import ClipTokenizer, OpenClip, TransformersClip
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.head import ScoreHead
from hypernoise.hypernoise_core.rewards.hps import Hps
from hypernoise.hypernoise_core.rewards.image_reward import TEXT, VISION, ImageReward
from hypernoise.hypernoise_core.rewards.images import Preprocess
from hypernoise.training.pipelines import load_pipeline

HERE = ("redness", "tiny-preference")
TINY_SIZE = 64  # of tiny-sprint's images, in pixels
PROMPT = "a red circle and a blue square"


def transformers_clip(vision: tuple, text: tuple, features: int, act: str) -> TransformersClip:
    """A CLIP with patches of 14 pixels; each tower is given as (width, layers, heads)."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    towers = []
    for values in (vision, text):
        sizes = dict(zip(names, values, strict=True)) | {"intermediate_size": 4 * values[0]}
        towers.append(sizes | {"hidden_act": act, "projection_dim": features})
    config = CLIPConfig(
        vision_config=towers[0] | {"patch_size": 14, "image_size": 224},
        text_config=towers[1] | {"eos_token_id": 49407},
        projection_dim=features,
    )
    return TransformersClip(CLIPModel(config), ClipTokenizer(), Preprocess())


def hps() -> Hps:
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    return Hps(OpenClip(model, ClipTokenizer(), Preprocess()))


def clip() -> ClipScore:
    return ClipScore(transformers_clip((1280, 32, 16), (1024, 24, 16), 1024, "gelu"))


def aesthetic() -> Aesthetic:
    encoder = transformers_clip((1024, 24, 16), (768, 12, 12), 768, "quick_gelu")
    return Aesthetic(encoder, ScoreHead(768))


def image_reward() -> ImageReward:
    vision = BlipVisionModel(BlipVisionConfig(**VISION))
    text = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)

    def tokens(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Stands in for BERT's tokenizer, whose vocabulary would have to be downloaded."""
        ids = torch.arange(1, 36).expand(len(prompts), -1)
        return ids, torch.ones_like(ids)

    return ImageReward(vision, text, ScoreHead(TEXT["hidden_size"]), tokens)


FULL_SIZE: dict[str, Callable[[], Reward]] = {
    "hps": hps,
    "clip": clip,
    "aesthetic": aesthetic,
    "imagereward": image_reward,
}


def with_random_weights(name: str, dtype: torch.dtype, device: str) -> Ensemble:
    """A published reward with its large networks in that dtype, and its head in float32."""
    with torch.device(device):
        reward = FULL_SIZE[name]()
    reward.to(dtype)
    if hasattr(reward, "head"):
        reward.head.float()
    return Ensemble({name: (reward.to(device), 1.0)})


def scoring(rewards: Ensemble, batch: int, size: int, repeats: int) -> dict[str, float]:
    """Time and memory of one batch of square images, without and with gradient."""
    device = rewards.device
    images, prompts = torch.rand(batch, 3, size, size, device=device), [PROMPT] * batch

    def score() -> object:
        return score_in_batches(rewards, images, prompts, batch_size=batch)

    def gradient() -> object:
        x = images.detach().requires_grad_(True)
        return torch.autograd.grad(rewards.score(x, prompts).sum(), x)

    seconds = medians({"score": score, "gradient": gradient}, repeats, device)
    return {
        "images_per_second": batch / seconds["score"],
        "seconds_per_image": seconds["score"] / batch,
        "gradient_seconds_per_image": seconds["gradient"] / batch,
        "gradient_over_score": seconds["gradient"] / seconds["score"],
        "MB_per_image": peak_bytes(score, device) / 1e6 / batch,
        "gradient_MB_per_image": peak_bytes(gradient, device) / 1e6 / batch,
    }


def reno(batch: int, iterations: int, device: str, dtype: torch.dtype, repeats: int) -> Rows:
    """A generation, a scored generation and an iteration of ReNO, for a batch of images."""
    pipeline = load_pipeline(TINY, device=device, dtype=dtype)
    family, rewards = family_of_pipeline(pipeline), load_rewards({"tiny-preference": 1.0})
    rewards.to(device)
    prompts = [PROMPT] * batch
    c = {name: t.to(device) for name, t in encode_prompts(pipeline, prompts).items()}
    shape = family.latent_shape(pipeline, TINY_SIZE, TINY_SIZE)
    noise = sample_noise(shape, range(batch), device=device)

    def images(x: Tensor) -> Tensor:
        return family.decode(pipeline, family.denoise(pipeline, x, c, 1))

    @torch.no_grad()
    def generation() -> Tensor:
        return images(noise)

    @torch.no_grad()
    def scored() -> Tensor:
        return rewards.score(images(noise), prompts)

    def search() -> RenoResult:
        config = RenoConfig(iterations=iterations)
        return optimise_noise(noise, images, lambda made: rewards.score(made, prompts), config)

    runs = {"generation": generation, "scored": scored, "iteration": search}
    seconds, peaks = medians(runs, repeats, device), {n: peak_bytes(runs[n], device) for n in runs}
    # A search ends with a scored generation.
    seconds["iteration"] = (seconds["iteration"] - seconds["scored"]) / iterations
    return {
        name: {
            "seconds": seconds[name],
            "per_second": 1 / seconds[name],
            "over_generation": seconds[name] / seconds["generation"],
            "over_scored": seconds[name] / seconds["scored"],
            "MB": peaks[name] / 1e6,
        }
        for name in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full_size", nargs="*", choices=FULL_SIZE)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024, help="size of scored images in pixels")
    parser.add_argument("--iterations", type=int, default=10, help="iterations of each search")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    device, batch, size, repeats = options.device, options.batch, options.size, options.repeats
    dtype, rows = choose_dtype(options.dtype, device), {}
    for name in HERE:
        rewards = load_rewards({name: 1.0}).to(device)
        for side in (TINY_SIZE, size):
            rows[f"{name}, {side} px"] = scoring(rewards, batch, side, repeats)
    for name in options.full_size or (FULL_SIZE if options.full_size is not None else ()):
        rewards = with_random_weights(name, dtype, device)
        rows[f"{name}, {size} px"] = scoring(rewards, batch, size, repeats)
        del rewards
    table("reward", rows)
    searches = reno(batch, options.iterations, device, dtype, repeats)
    table(f"ReNO, batch {batch}", searches)
    result = {"threads": torch.get_num_threads(), "device": device, "dtype": str(dtype)}
    print(json.dumps({**result, "batch": batch, "rewards": rows, "reno": searches}))


if __name__ == "__main__":
    main()
