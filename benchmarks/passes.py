"""What a pass of the hypernetwork costs beside one of the plain network, and beside peft's.

    .venv/bin/python benchmarks/passes.py [--models tiny-sprint sana flux sd-turbo] [--whole]

Networks have the published shapes and random weights; on the CPU only the first blocks of SANA-
Sprint and FLUX (--whole: all). `bound` is 1 + the branches' FLOPs / the network's, as torch counts
them. Times are medians of passes that take turns, in one process.
"""

import argparse
import json
from collections.abc import Callable

import diffusers
import torch
from peft import LoraConfig, inject_adapter_in_model
from timing import flops, medians
from torch import nn

from hypernoise.hypernoise_core.families import get_family
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork
from hypernoise.hypernoise_core.lora import adaptable_layers
from hypernoise.training.pipelines import load_pipeline
from hypernoise.training.published_models import PUBLISHED, build_on_meta

TINY = "tiny-sprint"
CUTS = {"sana": {"num_layers": 4}, "flux": {"num_layers": 2, "num_single_layers": 4}}
SIZES = {"sana": 1024, "flux": 512, "sd-turbo": 512, TINY: 64}
TOKENS = 64  # of a prompt


def make(model: str, whole: bool):
    """Family, network with random weights, noise of one image, and conditioning."""
    torch.manual_seed(0)
    if model == TINY:
        pipeline = load_pipeline(TINY)
        family = get_family("sana_sprint")
        network = family.network(pipeline)
    else:
        pipeline, family = build_on_meta(model), get_family(PUBLISHED[model].family)
        shapes = family.network(pipeline)
        cut = {} if whole else CUTS.get(model, {})
        network = getattr(diffusers, family.network_class).from_config({**shapes.config, **cut})
    network.eval().requires_grad_(False)
    size = SIZES[model]
    noise = torch.randn(1, *family.latent_shape(pipeline, size, size))
    conditioning = family.empty_conditioning(network, 1, torch.float32, "cpu")
    for name, tensor in conditioning.items():
        if tensor.ndim > 1 and tensor.shape[1] == family.text_tokens:
            tensor = tensor[:, :TOKENS]
        conditioning[name] = (
            torch.ones_like(tensor) if "mask" in name else torch.randn(tensor.shape) * 0.1
        )
    return family, network, noise, conditioning


def with_peft(network: nn.Module, names: list[str], rank: int) -> nn.Module:
    """The network with LoRA layers of peft's own, as the reference runs it."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    return inject_adapter_in_model(config, network).eval().requires_grad_(False)


def measure(model: str, whole: bool, rank: int, repeats: int) -> dict[str, float]:
    """Ratios of one model: pass_over_base, pass_over_bound, ours_over_peft; with `depthwise` those
    of an adapter on depthwise convolutions too, where the network has some."""
    family, network, noise, conditioning = make(model, whole)

    def new(adapt_depthwise: bool) -> NoiseHypernetwork:
        return NoiseHypernetwork.initialise(
            network, family, rank=rank, alpha=2 * rank, adapt_depthwise=adapt_depthwise
        ).requires_grad_(False)

    dense = len(adaptable_layers(network, True)) > len(adaptable_layers(network, False))
    adapters = {"ours": new(False)} | ({"ours_depthwise": new(True)} if dense else {})
    runs: dict[str, Callable[[], object]] = {
        "base": lambda: family.predict(network, noise, conditioning)
    }
    for name, adapter in adapters.items():
        runs[name] = lambda adapter=adapter: adapter(network, noise, conditioning)
    with torch.no_grad():
        names = list(adapters["ours"].layer_names)
        peft_network = with_peft(make(model, whole)[1], names, rank)
        runs["peft"] = lambda: family.predict(peft_network, noise, conditioning)
        counted = {name: flops(run) for name, run in runs.items()}
        print({k: v / counted["base"] for k, v in counted.items()})
        seconds = medians(runs, repeats)
    ratios = {"seconds": seconds["base"]}
    for name in adapters:
        suffix = name.removeprefix("ours")
        ratios[f"pass_over_base{suffix}"] = seconds[name] / seconds["base"]
        ratios[f"bound{suffix}"] = counted[name] / counted["base"]
        over = ratios[f"pass_over_base{suffix}"] / ratios[f"bound{suffix}"]
        ratios[f"pass_over_bound{suffix}"] = over
    ratios["ours_over_peft"] = seconds["ours"] / seconds["peft"]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--whole", action="store_true", help="all blocks")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    for model in options.models:
        rank = 16 if model == TINY else options.rank
        ratios = measure(model, options.whole, rank, options.repeats)
        print(model, json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
