"""ComfyUI inside the test process: models loaded, samplers called directly.

This process has ComfyUI's folder on sys.path, where `nodes` is ComfyUI's module, so it is not the
process of the other tests; test_inside_comfyui.py starts it.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hypernoise.tests.comfyui.conftest import INSIDE, REPOSITORY, Models

# A name as people have it: the zip of a release, unpacked.
FOLDER_NAME = "Any Folder-Name 1.0"


@dataclass(frozen=True)
class Comfy:
    """ComfyUI's nodes and the modules of our extension as ComfyUI loaded it."""

    nodes: ModuleType
    ours: Callable[[str], ModuleType]  # name of a module below our package -> the module

    def run(self, node: str, **inputs: Any) -> tuple:
        """Execute one of our nodes."""
        return self.nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args

    def sample(self, model: Any, cond: Any, latent: dict, **options: Any) -> torch.Tensor:
        """KSampler: one Euler step with cfg 1, unless options say otherwise."""
        settings = {"seed": 3, "steps": 1, "cfg": 1.0, "denoise": 1.0, **options}
        return self.nodes.KSampler().sample(
            model,
            sampler_name="euler",
            scheduler="simple",
            positive=cond,
            negative=cond,
            latent_image=latent,
            **settings,
        )[0]["samples"]


@pytest.fixture(scope="session")
def comfy(models: Models) -> Comfy:
    """Start ComfyUI without its server and let it load the extension."""
    sys.path.insert(0, os.environ[INSIDE])
    device = ["--cpu"]
    if torch.cuda.is_available():  # with the arithmetic of the CPU, which expectations are from
        device = ["--force-fp32", "--fp32-vae", "--fp32-text-enc"]
        torch.backends.cudnn.allow_tf32 = False
    sys.argv = ["main.py", "--base-directory", str(models.base), *device]
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    folder = models.base / "custom_nodes" / FOLDER_NAME
    folder.symlink_to(REPOSITORY, True)
    assert asyncio.run(nodes.load_custom_node(str(folder)))
    package = str(folder).replace(".", "_x_")
    return Comfy(nodes, lambda name: sys.modules[f"{package}.{name}"])


@pytest.fixture(autouse=True)
def inference_mode():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Loaded:
    """The generator, a prompt, an empty latent and a hypernetwork."""

    model: Any
    clip: Any
    vae: Any
    prompt: list
    latent: dict
    hypernoise: Any
    other: Any

    @property
    def network(self) -> torch.nn.Module:
        return self.model.model.diffusion_model


@pytest.fixture(scope="session")
def loaded(comfy: Comfy, models: Models) -> Loaded:
    from hypernoise.tests.comfyui.stand_ins import FILE, OTHER

    with torch.inference_mode():
        model, clip, vae = comfy.run(
            "HyperNoise_LoadSanaSprint", folder=models.folder, instruction=True, precision="auto"
        )
        prompt = comfy.nodes.CLIPTextEncode().encode(clip, "three green triangles")[0]
        latent = comfy.run("HyperNoise_EmptySanaLatent", width=64, height=64, batch_size=2)[0]
        hypernoise, other = (
            comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=name)[0] for name in (FILE, OTHER)
        )
    return Loaded(model, clip, vae, prompt, latent, hypernoise, other)


@dataclass(frozen=True)
class StandIn:
    """A small network with random weights in both worlds, a hypernetwork, and a random prompt."""

    network: torch.nn.Module  # of diffusers
    model: Any
    adapter: Path
    hypernoise: Any
    noise: torch.Tensor
    conditioning: dict[str, torch.Tensor]

    @property
    def positive(self) -> list:
        return positive_of(self.conditioning)


def positive_of(conditioning: dict[str, torch.Tensor]) -> list:
    """A CONDITIONING as ComfyUI's text encoders give it."""
    extra = {"pooled_output": conditioning.get("pooled_prompt_embeds")}
    return [[conditioning["prompt_embeds"], {k: v for k, v in extra.items() if v is not None}]]


@pytest.fixture
def stand_in(comfy: Comfy, tmp_path: Path) -> Callable[..., StandIn]:
    """Builds the stand-in of a family, always with the same weights."""
    from hypernoise.tests.comfyui import stand_ins
    from hypernoise.tests.comfyui.inside.networks import as_model

    def build(family: str, batch: int = 1, dtype: torch.dtype = torch.float32) -> StandIn:
        torch.manual_seed(4)
        network = stand_ins.NETWORKS[family]()
        path = tmp_path / "adapter.safetensors"
        stand_ins.save_random(network, family, 5, path)
        hypernetwork = comfy.ours("hypernoise_core.adapter").load_adapter(path)
        hypernoise = comfy.ours("nodes.comfy_model").Hypernoise.of(hypernetwork, "random")
        noise = torch.randn(batch, *stand_ins.LATENTS[family])
        shapes = stand_ins.CONDITIONING[family]
        conditioning = {name: torch.randn(batch, *shape) for name, shape in shapes.items()}
        return StandIn(network, as_model(network, dtype), path, hypernoise, noise, conditioning)

    return build


@pytest.fixture
def passes(comfy: Comfy, monkeypatch) -> list:
    """Grows by one entry with each pass of a hypernetwork."""
    ours = comfy.ours("nodes.comfy_model")
    count = []
    original = ours._run_network

    def counting(*args):
        count.append(args)
        return original(*args)

    monkeypatch.setattr(ours, "_run_network", counting)
    return count


@pytest.fixture
def fresh(comfy: Comfy, loaded: Loaded) -> Any:
    """The hypernetwork loaded anew, without anything remembered."""
    from hypernoise.tests.comfyui.stand_ins import FILE

    return comfy.run("HyperNoise_LoadHypernetwork", hypernetwork=FILE)[0]


@pytest.fixture(scope="session")
def reward(comfy: Comfy) -> Any:
    """The tiny world's own, at weight 1."""
    embedded = {"reward": "tiny-preference (embedded)", "weight": 1.0}
    with torch.inference_mode():
        return comfy.run("HyperNoise_LoadReward", **embedded)[0]


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Four of increasing redness."""
    ramp = torch.linspace(0, 1, 4).view(4, 1, 1, 1)
    return torch.cat([ramp.expand(4, 64, 64, 1), torch.zeros(4, 64, 64, 2)], dim=-1)


@pytest.fixture
def redness(comfy: Comfy) -> Any:
    """How red an image is, -1 to 1, at weight 2."""
    return comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=2.0)[0]
