"""One training update, ours and the plain baseline (plain_step.py): time by part, and memory.

    .venv/bin/python benchmarks/training_step.py [--models tiny-sprint sana] [--size 256]

tiny-sprint is trained with its shipped settings, but with `memsave`, the default for other models.
`sana` has SANA-Sprint's shapes and random weights; on the CPU it is cut to a seventh of its depth,
as are its text encoder (Gemma 2 2B) and three rewards (ViT-H); its VAE is whole. `memory` compares
whole models on the meta device, from shapes alone. The two alternate in one process; the last line
has all results as JSON.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from plain_step import PlainTrainer
from scoring import transformers_clip
from timing import medians, peak_bytes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hypernoise.hypernoise_core.families import Conditioning, family_of_pipeline
from hypernoise.hypernoise_core.families.family import stock_default
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork, modulate
from hypernoise.hypernoise_core.rewards import Ensemble, load_rewards
from hypernoise.hypernoise_core.rewards.clip_score import ClipScore
from hypernoise.hypernoise_core.rewards.redness import Redness
from hypernoise.training.config import TrainingConfig
from hypernoise.training.estimate import measure_step, shapes_as_on_gpus
from hypernoise.training.memory import LiveBytes, save_memory
from hypernoise.training.parts import prepare_training
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.published_models import PUBLISHED, build_on_meta, image_size
from hypernoise.training.settings import load_settings
from hypernoise.training.trainer import Trainer

CUT = 7  # divides the depth on the CPU
PROMPT_TOKENS = 64  # of SANA-Sprint's maximum of 300; the rest is padding
INSTRUCTION_TOKENS = 250  # of the instruction that its pipeline puts before each prompt
Updates = dict[str, Callable[[], object]]


def tiny_sprint(batch: int, device: str) -> tuple[Updates, int]:
    """One update of each kind, and its number of images."""
    recipe = load_settings(TrainingConfig, "tiny-sprint")
    config = replace(recipe, log_every=0, batch_size=batch, memsave=True)
    parts = prepare_training(config)
    updates = parts.trainer(config).updates()
    pipeline = load_pipeline("tiny-sprint", device=device)
    pipeline.transformer.to(memory_format=torch.contiguous_format)
    pipeline.vae.to(memory_format=torch.contiguous_format)
    plain = PlainTrainer(
        pipeline,
        lambda prompts: encode_as_stock(pipeline, prompts),
        load_rewards(config.rewards).to(device),
        config,
        parts.size,
    )
    batches = prompts_in_turn(parts.prompts.training, batch)
    return {"ours": lambda: next(updates), "plain": lambda: plain.step(next(batches))}, batch


def encode_as_stock(pipeline: Any, prompts: Sequence[str]) -> Conditioning:
    """The conditioning of SANA-Sprint, as its pipeline encodes it for each call."""
    instruction = stock_default(pipeline, "complex_human_instruction")
    device = pipeline._execution_device
    embeds, mask = pipeline.encode_prompt(
        list(prompts), device=device, complex_human_instruction=instruction
    )
    return with_guidance(pipeline, embeds, mask)


def with_guidance(pipeline: Any, embeds: Tensor, mask: Tensor) -> Conditioning:
    scale = pipeline.transformer.config.guidance_embeds_scale
    value = stock_default(pipeline, "guidance_scale") * scale
    guidance = embeds.new_full((len(embeds),), value)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask, "guidance": guidance}


def prompts_in_turn(prompts: Sequence[str], batch: int) -> Iterator[list[str]]:
    endless = itertools.cycle(prompts)
    while True:
        yield list(itertools.islice(endless, batch))


class Features:
    """Encoded prompts for our trainer: `PROMPT_TOKENS` tokens each, without padding."""

    def __init__(self, pipeline: Any, dtype: torch.dtype) -> None:
        self.pipeline, self.dtype = pipeline, dtype

    def rows(self, prompts: Sequence[str]) -> Conditioning:
        """One row per prompt."""
        channels = self.pipeline.transformer.config.caption_channels
        embeds = torch.randn(len(prompts), PROMPT_TOKENS, channels).to(self.dtype)
        mask = torch.ones(len(prompts), PROMPT_TOKENS, dtype=torch.long)
        return with_guidance(self.pipeline, embeds, mask)


def sana(batch: int, size: int, device: str, dtype: torch.dtype, cut: int) -> tuple[Updates, int]:
    """As `tiny_sprint`, for SANA-Sprint's shapes."""
    settings = {"precision": str(dtype).removeprefix("torch."), "image_size": size, "log_every": 0}
    names = ("hps", "clip", "pickscore")
    config = TrainingConfig(
        model="sana", batch_size=batch, rewards=dict.fromkeys(names, 1.0), **settings
    )
    prompts = [f"a photo of {n} cats on a red sofa" for n in range(2, 66)]
    rewards = Ensemble({name: (vit_h(dtype, cut).to(device), 1.0) for name in names})
    encoder = gemma(cut).to(device, dtype)

    def encode(prompts: Sequence[str]) -> Conditioning:
        tokens = torch.ones(len(prompts), INSTRUCTION_TOKENS + 300, dtype=torch.long, device=device)
        embeds = encoder(tokens).last_hidden_state[:, -300:]
        mask = torch.zeros(len(prompts), 300, dtype=torch.long, device=device)
        mask[:, :PROMPT_TOKENS] = 1
        return with_guidance(plain_pipeline, embeds, mask)

    plain_pipeline = random_sana(device, dtype, cut)
    plain = PlainTrainer(plain_pipeline, encode, rewards, config, (size, size))
    pipeline = random_sana(device, dtype, cut)
    for part in (pipeline.transformer, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    own_rewards = Ensemble({name: (vit_h(dtype, cut).to(device), 1.0) for name in names})
    for reward in own_rewards.members.values():
        known = dict(zip(prompts, reward.encoder.text_features(prompts), strict=True))
        reward.encoder.fix_texts(lambda ps, known=known: torch.stack([known[p] for p in ps]))
    save_memory(pipeline, own_rewards)
    features = Features(pipeline, dtype)
    arguments = {"size": (size, size), "base_model": "sana"}
    updates = Trainer(pipeline, own_rewards, prompts, features, config, **arguments).updates()
    batches = prompts_in_turn(prompts, batch)
    return {"ours": lambda: next(updates), "plain": lambda: plain.step(next(batches))}, batch


def random_sana(device: str, dtype: torch.dtype, cut: int) -> Any:
    """SANA-Sprint's pipeline with random weights and without a text encoder."""
    pipeline = build_on_meta("sana", dtype)
    transformer, vae = pipeline.transformer, pipeline.vae
    layers = transformer.config.num_layers // cut
    transformer = type(transformer).from_config({**transformer.config, "num_layers": layers})
    parts = {"transformer": transformer, "vae": type(vae).from_config(vae.config)}
    for part in parts.values():
        torch.nn.Module.to(part.eval().requires_grad_(False), device, dtype)
    pipeline.register_modules(**parts)
    return pipeline


def gemma(cut: int) -> torch.nn.Module:
    """Gemma 2 2B with random weights and a small vocabulary, which only affects its size."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=1000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26 // cut or 1,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    )
    return Gemma2Model(config).eval().requires_grad_(False)


def vit_h(dtype: torch.dtype, cut: int) -> ClipScore:
    """A reward with CLIPScore's shapes and random weights."""
    encoder = transformers_clip((1280, 32 // cut, 16), (1024, 24 // cut, 16), 1024, "gelu")
    return ClipScore(encoder.to(dtype))


def parts_of(update: Callable[[], object], device: str) -> dict[str, float]:
    """Share of each part in the time of one update, from torch's profiler."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with profile(activities=activities) as profiled:
        update()
    kind = "device_time_total" if device != "cpu" else "cpu_time_total"
    names = ("text encoder", "hypernetwork", "generator", "decode", "backward", "optimizer")
    seconds = {
        event.key: getattr(event, kind) / 1e6
        for event in profiled.key_averages()
        if event.key in names or event.key.startswith("reward")
    }
    return {name: round(value / sum(seconds.values()), 3) for name, value in seconds.items()}


def compare(updates: Updates, images: int, repeats: int, device: str) -> dict[str, Any]:
    """Time and peak memory of an update per image, and their ratios, ours / plain."""
    seconds = medians(updates, repeats, device)
    peaks = {name: peak_bytes(update, device) for name, update in updates.items()}
    return {
        "seconds_per_image": {name: value / images for name, value in seconds.items()},
        "megabytes_per_image": {name: value / images / 1e6 for name, value in peaks.items()},
        "train_time_ratio": seconds["ours"] / seconds["plain"],
        "train_memory_ratio": peaks["ours"] / peaks["plain"],
        "parts": {name: parts_of(update, device) for name, update in updates.items()},
    }


def full_size_memory(model: str) -> dict[str, float]:
    """Peak memory in GB of an update with one image of a whole model, in bfloat16 with rank 128,
    without weights, the adapter's gradients, text encoder and rewards; from shapes alone."""
    config = TrainingConfig(model=model, batch_size=1)
    peaks = {"ours": peak_of_ours(config), "plain": peak_of_plain(config)}
    return {name: peak / 1e9 for name, peak in peaks.items()} | {
        "train_memory_ratio": peaks["ours"] / peaks["plain"]
    }


def shapes_of(config: TrainingConfig) -> tuple[Any, Tensor, Conditioning]:
    """Pipeline, noise for one image, and conditioning, all on the meta device."""
    pipeline = build_on_meta(config.model, torch.bfloat16)
    family = family_of_pipeline(pipeline)
    side, _ = image_size(config.model, config.image_size, pipeline)
    noise = torch.empty(1, *family.latent_shape(pipeline, side, side), device="meta")
    network = family.network(pipeline)
    return pipeline, noise, family.empty_conditioning(network, 1, torch.bfloat16, "meta")


def peak_of_ours(config: TrainingConfig) -> int:
    pipeline, noise, conditioning = shapes_of(config)
    family = family_of_pipeline(pipeline)
    save_memory(pipeline)
    with torch.device("meta"):
        shape = {"rank": config.lora_rank, "alpha": config.lora_alpha}
        adapter = NoiseHypernetwork.initialise(family.network(pipeline), family, **shape)
    return measure_step(config, pipeline, adapter, noise, conditioning)[1]


def peak_of_plain(config: TrainingConfig) -> int:
    pipeline, noise, conditioning = shapes_of(config)
    family, no_rewards = family_of_pipeline(pipeline), Ensemble({"redness": (Redness(), 1.0)})
    with torch.device("meta"):
        size = image_size(config.model, config.image_size, pipeline)
        plain = PlainTrainer(pipeline, lambda prompts: {}, no_rewards, config, size)
    for parameter in plain.parameters:
        parameter.grad = torch.empty_like(parameter)
    with shapes_as_on_gpus(), LiveBytes() as live:
        start = modulate(noise, plain.hypernetwork(noise, conditioning))
        latents = plain.generator(lambda: family.predict(plain.network, start, conditioning))
        family.decode(pipeline, latents.float()).sum().backward()
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["tiny-sprint"])
    parser.add_argument("--memory", nargs="*", default=list(PUBLISHED), choices=PUBLISHED)
    parser.add_argument("--batch", type=int, help="default: 24 for tiny-sprint, 2 for sana")
    parser.add_argument("--size", type=int, default=256, help="size of sana's images in pixels")
    parser.add_argument("--whole", action="store_true", help="sana at its full depth")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    results: dict[str, Any] = {}
    for model in options.models:
        torch.manual_seed(0)
        if model == "tiny-sprint":
            updates, images = tiny_sprint(options.batch or 24, options.device)
        else:
            cut = 1 if options.whole else CUT
            updates, images = sana(options.batch or 2, options.size, options.device, dtype, cut)
        results[model] = compare(updates, images, options.repeats, options.device)
        print(model, json.dumps(results[model], indent=1), flush=True)
    for model in options.memory:
        results[f"memory {model}"] = full_size_memory(model)
        print("whole", model, results[f"memory {model}"], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
