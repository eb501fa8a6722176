"""Cost of a pass of the hypernetwork compared with the plain network, and with peft.

    .venv/bin/python benchmarks/passes.py [--models tiny-sprint sana flux sd-turbo] [--whole]

Networks have the published shapes and random weights; on the CPU, only the first blocks of
SANA-Sprint and FLUX (--whole: all). `bound` is 1 + the FLOPs of the branches, as B (A x), / those
of the network, as torch counts them. Adapters have the network's dtype. Times are medians of
alternating passes in one process. The last line has all results as JSON.
"""

import argparse
import json

import diffusers
import torch
from peft import LoraConfig, inject_adapter_in_model
from timing import Run, flops, lora_flops, medians
from torch import Tensor, nn

from hypernoise.hypernoise_core.families import Conditioning, Family, get_family
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.lora import adaptable_layers, modules_by_name
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.published_models import PUBLISHED, build_on_meta

TINY = "tiny-sprint"
CUTS = {"sana": {"num_layers": 4}, "flux": {"num_layers": 2, "num_single_layers": 4}}
SIZES = {"sana": 1024, "flux": 512, "sd-turbo": 512, TINY: 64}
TOKENS = 64  # in a prompt


def make(
    model: str, whole: bool, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Family, nn.Module, Tensor, Conditioning]:
    """Family, network with random weights, noise for one image, and conditioning."""
    torch.manual_seed(0)
    if model == TINY:
        pipeline = load_pipeline(TINY)
        family = get_family("sana_sprint")
        network = family.network(pipeline)
    else:
        pipeline, family = build_on_meta(model), get_family(PUBLISHED[model].family)
        shapes = family.network(pipeline)
        cut = {} if whole else CUTS.get(model, {})
        network_class = getattr(diffusers, family.network_class)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # in float32, two whole FLUX models would not fit on a GPU
        try:
            with torch.device(device):
                network = network_class.from_config({**shapes.config, **cut})
        finally:
            torch.set_default_dtype(before)
    network.eval().requires_grad_(False)
    nn.Module.to(network, device, dtype)
    size = SIZES[model]
    noise = torch.randn(1, *family.latent_shape(pipeline, size, size), device=device)
    conditioning = family.empty_conditioning(network, 1, dtype, device)
    for name, tensor in conditioning.items():
        if tensor.ndim > 1 and tensor.shape[1] == family.text_tokens:
            tensor = tensor[:, :TOKENS]
        conditioning[name] = (
            torch.ones_like(tensor) if "mask" in name else torch.randn_like(tensor) * 0.1
        )
    return family, network, noise, conditioning


def with_peft(network: nn.Module, names: list[str], rank: int, alpha: float) -> nn.Module:
    """The network with peft's LoRA layers, as the reference runs it."""
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights="gaussian"
    )
    return inject_adapter_in_model(config, network).eval().requires_grad_(False)


def measure(
    model: str, whole: bool, rank: int, repeats: int, device: str, dtype: torch.dtype
) -> dict[str, float]:
    """Ratios of one model: pass_over_base, bound, pass_over_bound, ours_over_peft. The suffix
    `_depthwise` marks an adapter that includes depthwise convolutions, if the network has any."""
    family, network, noise, conditioning = make(model, whole, device, dtype)
    layers = modules_by_name(network)

    def new(adapt_depthwise: bool) -> NoiseHypernetwork:
        adapter = NoiseHypernetwork.initialise(
            network, family, rank=rank, alpha=2 * rank, adapt_depthwise=adapt_depthwise
        )
        return adapter.requires_grad_(False).to(device, dtype)

    def base() -> Tensor:
        return family.predict(network, noise, conditioning)

    dense = len(adaptable_layers(network, True)) > len(adaptable_layers(network, False))
    adapters = {"": new(False)} | ({"_depthwise": new(True)} if dense else {})
    runs: dict[str, Run] = {"base": base}
    for suffix, adapter in adapters.items():
        runs[f"ours{suffix}"] = lambda adapter=adapter: adapter(network, noise, conditioning)
    peft_network = make(model, whole, device, dtype)[1]
    with_peft(peft_network, list(adapters[""].layer_names), rank, 2 * rank)
    nn.Module.to(peft_network, dtype)
    runs["peft"] = lambda: family.predict(peft_network, noise, conditioning)
    with torch.no_grad():
        seconds = medians(runs, repeats, device)
        ratios = {"seconds": seconds["base"]}
        for suffix, adapter in adapters.items():
            over_base = seconds[f"ours{suffix}"] / seconds["base"]
            bound = 1 + lora_flops(layers, adapter.branches, base) / flops(base)
            ratios |= {
                f"pass_over_base{suffix}": over_base,
                f"bound{suffix}": bound,
                f"flops_over_base{suffix}": flops(runs[f"ours{suffix}"]) / flops(base),
                f"pass_over_bound{suffix}": over_base / bound,
            }
    return ratios | {"ours_over_peft": seconds["ours"] / seconds["peft"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--whole", action="store_true", help="all blocks")
    parser.add_argument("--rank", type=int, default=128, help="rank; always 16 for tiny-sprint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    results = {}
    for model in options.models:
        rank, times = (16, 10) if model == TINY else (options.rank, 1)
        ratios = measure(model, options.whole, rank, times * options.repeats, options.device, dtype)
        results[model] = {name: round(value, 4) for name, value in ratios.items()}
        print(model, *(f"{k} {v}" for k, v in results[model].items()), sep="  ", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
