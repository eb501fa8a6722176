"""Cost of the nodes inside a real ComfyUI: in a sampling run, in a cached rerun, at startup.

    .venv/bin/python benchmarks/graph.py [--models tiny-sprint sana flux sd-turbo] [--whole]

ComfyUI runs in this process, without its server; KSampler with euler, simple and cfg 1. tiny-sprint
has its own hypernetwork; the other networks have the published shapes and random weights, and only
the first blocks of SANA-Sprint and FLUX on the CPU (--whole: all). Times are medians of alternating
runs. The last line of the output has all results as JSON.

- `graph_over_ideal`: time with / without the hypernetwork for n steps, each run with new noise,
  divided by (n + c) / n, where c is 1 + the FLOPs of its branches / those of the network.
- `cached_rerun_overhead`: time with / without - 1 if noise and prompt are the same as before.
- `import_seconds`: time that loading the nodes adds to ComfyUI's startup, in new processes.
"""

import argparse
import asyncio
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from passes import SIZES, TINY, make
from timing import flops, lora_flops, medians

from hypernoise.hypernoise_core.adapter import save_adapter
from hypernoise.hypernoise_core.hypernetwork import NoiseHypernetwork

REPOSITORY = Path(__file__).resolve().parents[1]
SLOWEST = 10  # number of modules to report
BIG = ("diffusers", "transformers", "peft", "accelerate", "open_clip", "torchvision")
Table = dict[int, dict[str, float]]  # by number of steps
MARK = "loading the HyperNoise nodes"

# Starts ComfyUI up to its custom nodes, then loads ours: modules, schemas, and all widgets.
START = f"""
import asyncio, json, sys, time
comfyui, base, folder = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import execution, server, nodes, comfy_api.latest, torch
modules, stock = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
print({MARK!r}, file=sys.stderr, flush=True)
start = time.perf_counter()
assert asyncio.run(nodes.load_custom_node(folder))
for name in set(nodes.NODE_CLASS_MAPPINGS) - stock:
    nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
seconds = time.perf_counter() - start
print(json.dumps({{
    "import_seconds": seconds,
    "new_big_packages": [name for name in {BIG!r} if name in set(sys.modules) - modules],
    "cuda_initialized": torch.cuda.is_initialized(),
}}))
"""


@dataclass(frozen=True)
class Case:
    """A model without and with its hypernetwork, and the other inputs of KSampler."""

    plain: Any
    modulated: Any
    prompt: list
    latent: dict


@dataclass(frozen=True)
class Comfy:
    """A running ComfyUI with our nodes."""

    nodes: ModuleType
    base: Path
    ours: Callable[[str], ModuleType]  # name of a module below our package -> the module

    def run(self, node: str, **inputs: Any) -> tuple:
        """Executes one of our nodes."""
        return self.nodes.NODE_CLASS_MAPPINGS[f"HyperNoise_{node}"].execute(**inputs).args

    def sample(self, model: Any, case: Case, steps: int, seed: int) -> None:
        """KSampler on the case's prompt and latent."""
        self.nodes.KSampler().sample(
            model, seed, steps, 1.0, "euler", "simple", case.prompt, case.prompt, case.latent
        )


def link(base: Path) -> Path:
    """Links our folder into the custom nodes of a base directory."""
    folder = base / "custom_nodes" / "ComfyUI-HyperNoise"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(REPOSITORY, True)
    return folder


def start(comfyui: Path, base: Path) -> Comfy:
    """Starts ComfyUI in this process; on the CPU if there is no CUDA."""
    sys.path.insert(0, str(comfyui))
    device = [] if torch.cuda.is_available() else ["--cpu"]
    sys.argv = ["main.py", "--base-directory", str(base), *device]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.utils
    import nodes

    comfy.utils.set_progress_bar_enabled(False)
    logging.getLogger().setLevel(logging.WARNING)
    folder = link(base)
    if not asyncio.run(nodes.load_custom_node(str(folder))):
        raise RuntimeError(f"ComfyUI in {comfyui} could not load the nodes.")
    package = str(folder).replace(".", "_x_")
    return Comfy(nodes, base, lambda name: sys.modules[f"{package}.{name}"])


def load(comfy: Comfy, model: str, batch: int, rank: int, whole: bool) -> Case:
    """The model with a prompt and empty latents, and with its hypernetwork."""
    if model == TINY:
        file, folder = "tiny-hypernoise (embedded)", f"{TINY} (embedded)"
        plain, clip, _ = comfy.run(
            "LoadSanaSprint", folder=folder, instruction=True, precision="auto"
        )
        prompt = comfy.nodes.CLIPTextEncode().encode(clip, "three green triangles")[0]
        latent = comfy.run("EmptySanaLatent", width=64, height=64, batch_size=batch)[0]
    else:
        file = f"{model}.safetensors"
        family, network, noise, conditioning = make(model, whole)
        adapter = NoiseHypernetwork.initialise(network, family, rank=rank, alpha=2 * rank)
        for branch in adapter.branches.values():
            torch.nn.init.normal_(branch.up, std=0.01)
        save_adapter(adapter, comfy.base / "models" / "hypernoise" / file)
        plain = as_model(comfy, network)
        names = {"pooled_output": "pooled_prompt_embeds", "attention_mask": "prompt_attention_mask"}
        extra = {key: conditioning[name] for key, name in names.items() if name in conditioning}
        prompt = [[conditioning["prompt_embeds"], extra]]
        latent = {"samples": torch.zeros(batch, *noise.shape[1:])}
    hypernoise = comfy.run("LoadHypernetwork", hypernetwork=file)[0]
    modulated = comfy.run("Apply", model=plain, hypernoise=hypernoise, strength=1.0)[0]
    return Case(plain, modulated, prompt, latent)


def as_model(comfy: Comfy, network: torch.nn.Module) -> Any:
    """The MODEL of a diffusers network: SANA-Sprint from our loader, others from ComfyUI's."""
    from comfy import model_management, sd

    sana = comfy.ours("nodes.sana_sprint.network")
    device = model_management.get_torch_device()
    dtype = sana.choose_dtype(device)
    if type(network).__name__ != "SanaTransformer2DModel":
        return sd.load_diffusion_model_state_dict(network.state_dict(), {"dtype": dtype})
    own = sana.network_class().from_config(network.config).to(dtype).requires_grad_(False).eval()
    model = sana.SanaSprint(sana.SanaConfig(sana.SanaLatent()), own)
    patcher = comfy.ours("nodes.comfy_model").WholeModelPatcher
    return patcher(model, device, model_management.unet_offload_device())


def compare(
    comfy: Comfy, case: Case, steps: int, seeds: Iterator[int], repeats: int
) -> tuple[float, float]:
    """Seconds without and with the hypernetwork."""

    def run(model: Any) -> Callable[[], None]:
        return lambda: comfy.sample(model, case, steps, next(seeds))

    seconds = medians({"without": run(case.plain), "with": run(case.modulated)}, repeats)
    return seconds["without"], seconds["with"]


def lora_share(comfy: Comfy, case: Case) -> float:
    """FLOPs of the hypernetwork's branches / those of the network."""
    wrapper = case.modulated.get_wrappers("sampler_sample", "hypernoise")[0]
    part = wrapper.parts[0]
    modules = dict(case.plain.model.diffusion_model.named_modules())
    layers = {name: modules[target.module] for name, target in part.targets.items()}

    def evaluate() -> None:
        comfy.sample(case.plain, case, 1, 0)

    added = lora_flops(layers, part.hypernoise.hypernetwork.branches, evaluate)
    return added / flops(evaluate)


def graph(comfy: Comfy, case: Case, steps: list[int], repeats: int) -> Table:
    """Time with / without, its ideal values, and `graph_over_ideal`, with new noise in each run."""
    seeds = itertools.count(1)
    share = lora_share(comfy, case)
    found = {}
    for n in steps:
        before, after = compare(comfy, case, n, seeds, repeats)
        ideal = (n + 1 + share) / n
        found[n] = {
            "seconds": before,
            "with_over_without": after / before,
            "ideal_without_lora": (n + 1) / n,
            "ideal": ideal,
            "graph_over_ideal": after / before / ideal,
        }
    return found


def cached_rerun(comfy: Comfy, case: Case, steps: list[int], repeats: int) -> Table:
    """`cached_rerun_overhead`, with the same noise and prompt in each run."""
    found = {}
    for n in steps:
        before, after = compare(comfy, case, n, itertools.repeat(0), repeats)
        found[n] = {
            "seconds": before,
            "added_milliseconds": 1000 * (after - before),
            "cached_rerun_overhead": after / before - 1,
        }
    return found


def import_time(comfyui: Path, repeats: int) -> dict[str, Any]:
    """`import_seconds` over new processes, the BIG packages that were imported, and, from one more
    process, the slowest modules: name, milliseconds alone and with imports."""

    def run(*options: str) -> tuple[dict[str, Any], str]:
        with tempfile.TemporaryDirectory() as base:
            folder = str(link(Path(base)))
            command = [sys.executable, *options, "-c", START, str(comfyui), base, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ComfyUI in {comfyui} did not start:\n{done.stderr[-4000:]}")
        log = done.stderr.replace(folder.replace(".", "_x_"), "hypernoise")
        return json.loads(done.stdout.splitlines()[-1]), log.split(MARK)[1]

    runs = [run()[0] for _ in range(repeats)]
    seconds = statistics.median(each["import_seconds"] for each in runs)
    modules = []
    for line in run("-X", "importtime")[1].splitlines():
        if line.startswith("import time:"):
            own, total, name = line.removeprefix("import time:").split("|")
            modules.append((name.strip(), int(own) / 1000, int(total) / 1000))
    modules.sort(key=lambda module: module[1], reverse=True)
    return {**runs[0], "import_seconds": seconds, "slowest_modules": modules[:SLOWEST]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="ComfyUI folder; default: that of the tests")
    parser.add_argument("--models", nargs="*", default=[TINY, "sana"], choices=SIZES)
    parser.add_argument("--whole", action="store_true", help="all blocks")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 8 for tiny-sprint, else 1")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rank", type=int, default=128, help="rank, except for tiny-sprint")
    parser.add_argument("--repeats", type=int, default=12, help="four times that for tiny-sprint")
    parser.add_argument("--starts", type=int, default=5, help="ComfyUI startups; 0: none")
    options = parser.parse_args()
    if (comfyui := options.comfyui) is None:
        from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path

        comfyui = comfyui_path()
    comfyui, result = comfyui.resolve(), {"threads": torch.get_num_threads()}
    if options.starts:
        result["import"] = found = import_time(comfyui, options.starts)
        print(*(f"{name} {found[name]}" for name in found if name != "slowest_modules"), sep="  ")
        for name, own, total in found["slowest_modules"]:
            print(f"  {own:6.1f} ms, with imports {total:6.1f} ms  {name}")
    with tempfile.TemporaryDirectory() as base, torch.inference_mode():
        comfy = start(comfyui, Path(base)) if options.models else None
        for model in options.models:
            for batch in options.batches or [8 if model == TINY else 1]:
                case = load(comfy, model, batch, options.rank, options.whole)
                repeats = options.repeats * (4 if model == TINY else 1)
                for measure in (graph, cached_rerun):
                    for n, found in measure(comfy, case, options.steps, repeats).items():
                        key = f"{measure.__name__} {model} batch {batch} steps {n}"
                        result[key] = found
                        values = (f"{name} {value:.4g}" for name, value in found.items())
                        print(key, *values, sep="  ", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
