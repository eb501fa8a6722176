"""Memory that --use_checkpoint and --memsave save in a training step, each in its own process.

    .venv/bin/python benchmarks/memory.py [--size 512] [--batch 2]

A random SANA-Sprint with a tenth of the published width runs on the CPU in float32. `kept` is the
memory of activations stored for the backward pass, `peak` the peak memory of the step, and
`process` the increase of the process's peak resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

WAYS = {
    "plain": [],
    "use_checkpoint": ["use_checkpoint"],
    "memsave": ["memsave"],
    "both": ["memsave", "use_checkpoint"],
}
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def make_pipeline():
    """SANA-Sprint with fewer and narrower blocks."""
    import diffusers
    import torch

    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        num_attention_heads=8,
        num_cross_attention_heads=8,
        cross_attention_head_dim=32,
        cross_attention_dim=256,
        caption_channels=256,
        num_layers=8,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    channels = (16, 32, 64, 64, 128, 128)
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = diffusers.AutoencoderDC(
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    for part in (transformer, vae):
        part.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return diffusers.SanaSprintPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.SCMScheduler(),
    )


def measure(way: str, size: int, batch: int) -> dict[str, float]:
    """Measures one step in this process: bytes (kept, peak, process) and seconds."""
    import torch

    from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
    from hypernoise.training.config import TrainingConfig
    from hypernoise.training.estimate import measure_step
    from hypernoise.training.memory import checkpoint_activations, save_memory

    pipeline = make_pipeline()
    if "memsave" in WAYS[way]:
        save_memory(pipeline)
    if "use_checkpoint" in WAYS[way]:
        checkpoint_activations(pipeline)
    adapter = NoiseHypernetwork.initialise(pipeline.transformer, "sana_sprint", rank=16, alpha=32)
    conditioning = {
        "prompt_embeds": torch.randn(batch, 64, 256),
        "prompt_attention_mask": torch.ones(batch, 64, dtype=torch.long),
        "guidance": torch.full((batch,), 0.45),
    }
    noise = torch.randn(batch, 32, size // 32, size // 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept, peak = measure_step(TrainingConfig(), pipeline, adapter, noise, conditioning)
    seconds = time.perf_counter() - start
    process = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _RSS_UNIT
    return {"kept": kept, "peak": peak, "process": process, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=2, help="number of images")
    parser.add_argument("--way", choices=WAYS, help="measure only this one, and print it as JSON")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.size, options.batch)))
        return
    print(f"{options.batch} images of {options.size} x {options.size} pixels, in MB")
    print(f"{'':14}{'kept':>8}{'peak':>8}{'process':>9}{'seconds':>9}")
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--size", str(options.size)]
        command += ["--batch", str(options.batch)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(output.splitlines()[-1])
        sizes = [round(result[name] / 1e6) for name in ("kept", "peak", "process")]
        print(f"{way:14}{sizes[0]:8}{sizes[1]:8}{sizes[2]:9}{result['seconds']:9.1f}", flush=True)


if __name__ == "__main__":
    main()
