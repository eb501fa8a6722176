# ruff: noqa: E501 - the notes are text
"""Writes workflows/*.json, and workflows/api/*.json in API format, from the graphs described here.

    python scripts/write_workflows.py http://127.0.0.1:8188

Needs a running ComfyUI with this extension, from which it reads the inputs and outputs of nodes.
"""

import json
import sys
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GENERATOR, HYPERNETWORK = "tiny-sprint (embedded)", "tiny-hypernoise (embedded)"
PROMPT = "three green triangles"
COLUMNS = (0, 400, 840, 1220, 1620)  # x of the columns of nodes
NOTE_X, TOP = -500, 160


@dataclass(frozen=True)
class Output:
    """One output of a node in a graph."""

    node: int
    slot: int


@dataclass
class Graph:
    """Collects nodes; `info` is ComfyUI's /object_info."""

    info: dict[str, dict]
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    api: dict[str, dict] = field(default_factory=dict)

    def note(self, text: str, height: int = 590) -> None:
        """A note to the left of the graph."""
        self._place("MarkdownNote", (NOTE_X, TOP), (450, height), widgets_values=[text])
        self.nodes[-1] |= {"title": "About this workflow", "color": "#222", "bgcolor": "#000"}

    def add(
        self,
        kind: str,
        column: int,
        y: int,
        *,
        title: str | None = None,
        tall: int | None = None,
        models: tuple[dict[str, str], ...] = (),
        **inputs: Any,
    ) -> list[Output]:
        """A node; inputs are values or outputs of other nodes, all others have their default.

        `tall` is the height on the canvas where the usual one does not do; `models` are the files
        that ComfyUI offers to download when they are missing.
        """
        spec = self.info[kind]
        values, slots = [], []
        number = len(self.nodes) + 1
        entry = {"class_type": kind, "inputs": {}, "_meta": {"title": title or _title(spec, kind)}}
        for name, (what, *options) in _inputs(spec).items():
            value = inputs.pop(name, None)
            settings = options[0] if options else {}
            slot = {"name": name, "type": what, "link": None}
            if isinstance(value, Output):
                slot["link"] = self._link(value, number, len(slots), what)
                entry["inputs"][name] = [str(value.node), value.slot]
            if (isinstance(what, list) or what in WIDGETS) and not settings.get("forceInput"):
                linked = slot["link"] is not None
                if linked:  # the widget stays, under the link
                    slots.append(slot | {"widget": {"name": name}})
                if value is None or linked:
                    value = settings.get("default")
                    if value is None:
                        value = (what if isinstance(what, list) else settings["options"])[0]
                values.append(value)
                if settings.get("control_after_generate"):
                    values.append("fixed")
                if not linked:
                    entry["inputs"][name] = value
                continue
            slots.append(slot)
        if inputs:
            raise ValueError(f"{kind} has no inputs {sorted(inputs)}")
        lines = max(len(slots), len(spec["output"])) + len(values)
        size = (COLUMNS[column + 1] - COLUMNS[column] - 60, tall or 16 + 24 * lines)
        self._place(kind, (COLUMNS[column], y), size, slots, values)
        node = self.nodes[-1]
        node["outputs"] = [
            {"name": name, "type": what, "slot_index": i, "links": []}
            for i, (name, what) in enumerate(zip(spec["output_name"], spec["output"], strict=True))
        ]
        node["properties"] = {"Node name for S&R": kind}
        if kind.startswith("HyperNoise_"):
            node["properties"]["cnr_id"] = "hypernoise"
        if models:
            node["properties"]["models"] = list(models)
        if title:
            node["title"] = title
        self.api[str(number)] = entry
        return [Output(number, slot) for slot in range(len(spec["output"]))]

    def _place(self, kind, at, size, slots=(), widgets_values=()) -> None:
        number = len(self.nodes) + 1
        self.nodes.append(
            {
                "id": number,
                "type": kind,
                "pos": list(at),
                "size": list(size),
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": list(slots),
                "outputs": [],
                "properties": {},
                "widgets_values": list(widgets_values),
            }
        )

    def _link(self, source: Output, target: int, slot: int, kind: str) -> int:
        number = len(self.links) + 1
        self.links.append([number, source.node, source.slot, target, slot, kind])
        self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(number)
        return number

    def write(self, name: str) -> None:
        """Writes workflows/NAME.json for the canvas and workflows/api/NAME.json for scripts."""
        workflow = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hypernoise/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.8, "offset": [560, -60]}},
            "version": 0.4,
        }
        for path, content in ((f"{name}.json", workflow), (f"api/{name}.json", self.api)):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (FOLDER / path).write_text(text, encoding="utf-8")


def _inputs(spec: dict) -> dict[str, list]:
    return {**spec["input"].get("required", {}), **spec["input"].get("optional", {})}


def _title(spec: dict, kind: str) -> str:
    return spec["display_name"] or kind


REAL_SANA = """
### With the real SANA-Sprint

1. `models/sana_sprint/` - [Sana_Sprint_0.6B_1024px_diffusers](https://huggingface.co/Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers), the whole folder
2. `models/hypernoise/` - [HyperNoise_Sana_Sprint_0.6B](https://huggingface.co/lucaeyring/HyperNoise_Sana_Sprint_0.6B), the whole folder
3. Select both in the two loaders, and set width and height to 1024.

Keep cfg at 1.0. One step is enough; 2 or 4 steps refine the image."""

TINY = """
By default, this workflow runs the tiny generator that ships with the extension. It draws coloured shapes at 64 x 64. Prompts it understands: *a red circle left of a blue square*, *three green triangles*, *a yellow square*.
"""


@dataclass(frozen=True)
class Sana:
    """The start of every SANA-Sprint graph."""

    model: Output
    clip: Output
    vae: Output
    hypernoise: Output
    latent: Output


def sana(graph: Graph, batch_size: int = 1) -> Sana:
    """The loaders and the empty latent, in the first column."""
    model, clip, vae = graph.add("HyperNoise_LoadSanaSprint", 0, TOP, folder=GENERATOR)
    (hypernoise,) = graph.add("HyperNoise_LoadHypernetwork", 0, 400, hypernetwork=HYPERNETWORK)
    (latent,) = graph.add(
        "HyperNoise_EmptySanaLatent", 0, 560, width=64, height=64, batch_size=batch_size
    )
    return Sana(model, clip, vae, hypernoise, latent)


def prompt(graph: Graph, clip: Output, text: str, y: int, title: str | None = None) -> Output:
    """An encoded text, in the second column."""
    return graph.add("CLIPTextEncode", 1, y, text=text, clip=clip, title=title, tall=150)[0]


def ksampler(
    graph: Graph,
    model: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    y: int = TOP,
    steps: int = 1,
) -> Output:
    """KSampler with the settings for distilled models, in the third column."""
    return graph.add(
        "KSampler", 2, y, model=model, positive=positive, negative=negative, latent_image=latent,
        seed=7, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", tall=270,
    )[0]  # fmt: skip


def sana_sprint_text_to_image(graph: Graph) -> None:
    graph.note(
        "## SANA-Sprint with a noise hypernetwork\n\nThe hypernetwork reads the random noise and "
        "the prompt, and changes the noise before the sampler starts. It costs one extra pass of "
        "the model. The model itself does not change.\n\n**Try it:** press Run, then set "
        "*strength* to 0 and run again to get the plain model's image from the same noise.\n"
        + TINY + REAL_SANA
    )  # fmt: skip
    base = sana(graph)
    (model,) = graph.add("HyperNoise_Apply", 1, TOP, model=base.model, hypernoise=base.hypernoise)
    positive = prompt(graph, base.clip, PROMPT, 370)
    negative = prompt(graph, base.clip, "", 570)
    latents = ksampler(graph, model, positive, negative, base.latent)
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=base.vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=480)


def sana_sprint_side_by_side(graph: Graph) -> None:
    graph.note(
        "## With and without, from the same noise\n\nTwo samplers use the same seed. The upper four "
        "images come from the plain model; the lower four start from modulated noise. To change "
        "the seed, change it in both.\n" + TINY + REAL_SANA
    )
    base = sana(graph, batch_size=4)
    (model,) = graph.add("HyperNoise_Apply", 1, TOP, model=base.model, hypernoise=base.hypernoise)
    positive = prompt(graph, base.clip, PROMPT, 370)
    negative = prompt(graph, base.clip, "", 570)
    pictures = []
    for y, source in ((TOP, base.model), (620, model)):
        latents = ksampler(graph, source, positive, negative, base.latent, y)
        (image,) = graph.add("VAEDecode", 2, y + 330, samples=latents, vae=base.vae)
        pictures.append(image)
    for y, image, name in ((TOP, pictures[0], "plain"), (620, pictures[1], "hypernoise")):
        graph.add(
            "SaveImage", 3, y, images=image, filename_prefix=f"HyperNoise_{name}",
            title=f"Save Image ({name})", tall=360,
        )  # fmt: skip


def sana_sprint_mix_two_hypernetworks(graph: Graph) -> None:
    graph.note(
        "## Two hypernetworks, two sliders\n\nSeveral *Apply Noise Hypernetwork* nodes in a row add "
        "up. Each hypernetwork reads the original noise, and its change is added with its own "
        "*strength*, so you can mix one trained for aesthetics with one trained for prompt "
        "following. The extension ships only one tiny hypernetwork, so both loaders use it here: "
        "0.5 and 0.5 give the same result as 1.0 of it. Select your own.\n" + TINY + REAL_SANA
    )
    base = sana(graph)
    (second,) = graph.add(
        "HyperNoise_LoadHypernetwork", 0, 740, hypernetwork=HYPERNETWORK,
        title="Load Noise Hypernetwork (second)",
    )  # fmt: skip
    (model,) = graph.add(
        "HyperNoise_Apply", 1, TOP, model=base.model, hypernoise=base.hypernoise, strength=0.5
    )
    (model,) = graph.add("HyperNoise_Apply", 1, 370, model=model, hypernoise=second, strength=0.5)
    positive = prompt(graph, base.clip, PROMPT, 580)
    negative = prompt(graph, base.clip, "", 780)
    latents = ksampler(graph, model, positive, negative, base.latent)
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=base.vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=480)


def sana_sprint_noise_prompt(graph: Graph) -> None:
    graph.note(
        "## A separate prompt for the noise\n\nThe hypernetwork reads *noise_prompt*, and the sampler "
        "reads the positive prompt. The layout and colours that the noise suggests come from one "
        "text, the image from the other. Disconnect *noise_prompt* to use the same prompt for both.\n"
        + TINY + REAL_SANA
    )  # fmt: skip
    base = sana(graph)
    positive = prompt(graph, base.clip, PROMPT, 420)
    negative = prompt(graph, base.clip, "", 620)
    noise_prompt = prompt(graph, base.clip, "a red square", 820, "Noise prompt")
    (model,) = graph.add(
        "HyperNoise_Apply", 1, TOP,
        model=base.model, hypernoise=base.hypernoise, noise_prompt=noise_prompt,
    )  # fmt: skip
    latents = ksampler(graph, model, positive, negative, base.latent)
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=base.vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=480)


def sana_sprint_advanced_sampler(graph: Graph) -> None:
    graph.note(
        "## SamplerCustomAdvanced with a noise preview\n\n*Modulate Noise* takes a NOISE and "
        "returns a NOISE, so the guider uses the plain model. The sampler's sigmas tell it where "
        "sampling starts. *SANA-Sprint Sigmas* with the sampler lcm is the model's own schedule. "
        "*Preview Noise Delta* decodes the noise, the change and the changed noise as if they were "
        "images. *Noise to Latent* saves the noise in a file.\n" + TINY + REAL_SANA
    )
    base = sana(graph)
    (noise,) = graph.add("RandomNoise", 0, 740, noise_seed=7)
    positive = prompt(graph, base.clip, PROMPT, TOP)
    (sigmas,) = graph.add("HyperNoise_SanaSprintSigmas", 1, 820, steps=2)
    (modulated,) = graph.add(
        "HyperNoise_ModulateNoise", 1, 370,
        noise=noise, model=base.model, positive=positive, hypernoise=base.hypernoise, sigmas=sigmas,
    )  # fmt: skip
    (guider,) = graph.add("BasicGuider", 1, 600, model=base.model, conditioning=positive)
    (sampler,) = graph.add("KSamplerSelect", 1, 720, sampler_name="lcm")
    latents, _ = graph.add(
        "SamplerCustomAdvanced", 2, TOP,
        noise=modulated, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=base.latent,
    )  # fmt: skip
    (image,) = graph.add("VAEDecode", 2, 420, samples=latents, vae=base.vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=420)
    graph.add(
        "HyperNoise_PreviewDelta", 2, 560, tall=420,
        noise=noise, modulated_noise=modulated, model=base.model, latent=base.latent, vae=base.vae,
    )  # fmt: skip
    (drawn,) = graph.add(
        "HyperNoise_NoiseToLatent", 3, 640, noise=modulated, model=base.model, latent=base.latent
    )
    graph.add("SaveLatent", 3, 770, samples=drawn, filename_prefix="latents/HyperNoise_noise")


REWARD = "tiny-preference (embedded)"
REAL_REWARDS = """

tiny-preference only scores the tiny generator's shapes. For real images, select HPSv2.1, ImageReward, CLIPScore, PickScore or all four (*paper*) in *Load Reward*, and turn on *download* there once."""


def sana_sprint_best_of_8(graph: Graph) -> None:
    graph.note(
        "## Eight seeds, keep the best two\n\n*Seeds* returns a list, so the sampler runs once for each "
        "seed. *Score Images* shows all eight images with their scores. *Best of N* keeps the two "
        "with the highest reward and their seeds. To get such an image again, enter its seed in an "
        "ordinary KSampler.\n" + TINY + REAL_SANA + REAL_REWARDS, height=720,
    )  # fmt: skip
    base = sana(graph)
    (model,) = graph.add("HyperNoise_Apply", 1, TOP, model=base.model, hypernoise=base.hypernoise)
    positive = prompt(graph, base.clip, PROMPT, 370)
    negative = prompt(graph, base.clip, "", 570)
    (seeds,) = graph.add("HyperNoise_Seeds", 0, 740, seed=7, count=8)
    (reward,) = graph.add("HyperNoise_LoadReward", 0, 900, reward=REWARD)
    (latents,) = graph.add(
        "KSampler", 2, TOP, model=model, positive=positive, negative=negative,
        latent_image=base.latent, seed=seeds, steps=1, cfg=1.0, sampler_name="euler",
        scheduler="simple", tall=270,
    )  # fmt: skip
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=base.vae)
    best, *_ = graph.add(
        "HyperNoise_BestOfN", 3, TOP, images=image, reward=reward, prompt=PROMPT, keep=2,
        latents=latents, seeds=seeds, tall=520,
    )  # fmt: skip
    graph.add(
        "HyperNoise_ScoreImages", 2, 580, images=image, reward=reward, prompt=PROMPT, tall=520
    )
    graph.add("SaveImage", 3, 740, images=best, filename_prefix="HyperNoise_best", tall=340)


def sana_sprint_compare(graph: Graph) -> None:
    graph.note(
        "## Does the hypernetwork help? A win rate\n\nSixteen images with the hypernetwork and "
        "sixteen without, from the same noises. *Compare Images* counts the pairs in which the "
        "reward prefers the second image, and reports a 95% confidence interval.\n"
        + TINY + REAL_SANA + REAL_REWARDS, height=680,
    )  # fmt: skip
    base = sana(graph, batch_size=16)
    (reward,) = graph.add("HyperNoise_LoadReward", 0, 740, reward=REWARD)
    (model,) = graph.add("HyperNoise_Apply", 1, TOP, model=base.model, hypernoise=base.hypernoise)
    positive = prompt(graph, base.clip, PROMPT, 370)
    negative = prompt(graph, base.clip, "", 570)
    pictures = []
    for y, source in ((TOP, base.model), (620, model)):
        latents = ksampler(graph, source, positive, negative, base.latent, y)
        (image,) = graph.add("VAEDecode", 2, y + 330, samples=latents, vae=base.vae)
        pictures.append(image)
    _, plot, _ = graph.add(
        "HyperNoise_CompareImages", 3, TOP, first=pictures[0], second=pictures[1], reward=reward,
        prompt=PROMPT, tall=520,
    )  # fmt: skip
    graph.add("SaveImage", 3, 740, images=plot, filename_prefix="HyperNoise_compare", tall=340)


def sana_sprint_reno(graph: Graph) -> None:
    graph.note(
        "## ReNO: search for the noise\n\nReNO runs gradient ascent on the reward over the noise of "
        "this one image. The hypernetwork learned to do the same in a single pass. Here ReNO starts "
        "from the hypernetwork's noise. Connect *RandomNoise* to *ReNO* to start from plain noise, "
        "as in the paper (50 iterations). The image shows the score before and after.\n"
        + TINY + REAL_SANA + REAL_REWARDS, height=720,
    )  # fmt: skip
    base = sana(graph)
    (noise,) = graph.add("RandomNoise", 0, 740, noise_seed=7)
    (reward,) = graph.add("HyperNoise_LoadReward", 0, 860, reward=REWARD)
    positive = prompt(graph, base.clip, PROMPT, TOP)
    (warm,) = graph.add(
        "HyperNoise_ModulateNoise", 1, 370,
        noise=noise, model=base.model, positive=positive, hypernoise=base.hypernoise,
    )  # fmt: skip
    (guider,) = graph.add("BasicGuider", 1, 600, model=base.model, conditioning=positive)
    (sampler,) = graph.add("KSamplerSelect", 1, 720, sampler_name="euler")
    (sigmas,) = graph.add("HyperNoise_SanaSprintSigmas", 1, 820, steps=1)
    found, *_ = graph.add(
        "HyperNoise_ReNO", 2, TOP, noise=warm, model=base.model, positive=positive,
        latent=base.latent, vae=base.vae, reward=reward, prompt=PROMPT, iterations=20, tall=760,
    )  # fmt: skip
    latents, _ = graph.add(
        "SamplerCustomAdvanced", 3, TOP,
        noise=found, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=base.latent,
    )  # fmt: skip
    (image,) = graph.add("VAEDecode", 3, 380, samples=latents, vae=base.vae)
    graph.add("SaveImage", 3, 480, images=image, filename_prefix="HyperNoise_reno", tall=420)


def model(directory: str, name: str, repository: str, path: str | None = None) -> dict[str, str]:
    """A file on the hub, as ComfyUI's dialog for missing models reads it."""
    url = f"https://huggingface.co/{repository}/resolve/main/{path or name}"
    return {"name": name, "url": url, "directory": directory}


OWN_HYPERNETWORK = """

*Load Noise Hypernetwork* lists the `.safetensors` files and peft folders in `models/hypernoise/`. A hypernetwork only works with the generator it was trained on; otherwise the node reports an error."""


def flux_schnell(graph: Graph) -> None:
    graph.note(
        "## FLUX.1-schnell with a noise hypernetwork\n\nThe usual FLUX workflow with one node "
        "between the model and the sampler. It costs one extra pass of the model.\n\n"
        "ComfyUI offers to download missing model files." + OWN_HYPERNETWORK
    )
    network, t5 = "flux1-schnell.safetensors", "t5xxl_fp8_e4m3fn.safetensors"
    text = "comfyanonymous/flux_text_encoders"
    (source,) = graph.add(
        "UNETLoader", 0, TOP, unet_name=network,
        models=(model("diffusion_models", network, "black-forest-labs/FLUX.1-schnell"),),
    )  # fmt: skip
    (hypernoise,) = graph.add(
        "HyperNoise_LoadHypernetwork", 0, 320, hypernetwork="flux_schnell.safetensors"
    )
    (clip,) = graph.add(
        "DualCLIPLoader", 0, 450, clip_name1="clip_l.safetensors", clip_name2=t5, type="flux",
        models=(
            model("text_encoders", "clip_l.safetensors", text), model("text_encoders", t5, text)
        ),
    )  # fmt: skip
    (vae,) = graph.add(
        "VAELoader", 0, 640, vae_name="ae.safetensors",
        models=(model("vae", "ae.safetensors", "black-forest-labs/FLUX.1-schnell"),),
    )  # fmt: skip
    (latent,) = graph.add("EmptySD3LatentImage", 0, 760, width=1024, height=1024)
    (modulated,) = graph.add("HyperNoise_Apply", 1, TOP, model=source, hypernoise=hypernoise)
    positive = prompt(graph, clip, "a photo of a red cube left of a blue sphere", 370)
    negative = prompt(graph, clip, "", 570)
    latents = ksampler(graph, modulated, positive, negative, latent, steps=4)
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=480)


def sd_turbo(graph: Graph) -> None:
    graph.note(
        "## SD-Turbo with a noise hypernetwork\n\nThe usual workflow with one node between "
        "the checkpoint and the sampler. 512 x 512, cfg 1, one step and one extra pass.\n\nComfyUI "
        "offers to download the checkpoint if it is missing." + OWN_HYPERNETWORK
    )
    name = "sd_turbo.safetensors"
    source, clip, vae = graph.add(
        "CheckpointLoaderSimple", 0, TOP, ckpt_name=name,
        models=(model("checkpoints", name, "stabilityai/sd-turbo"),),
    )  # fmt: skip
    (hypernoise,) = graph.add(
        "HyperNoise_LoadHypernetwork", 0, 340, hypernetwork="sd_turbo.safetensors"
    )
    (latent,) = graph.add("EmptyLatentImage", 0, 470, width=512, height=512)
    (modulated,) = graph.add("HyperNoise_Apply", 1, TOP, model=source, hypernoise=hypernoise)
    positive = prompt(graph, clip, "a photo of a red cube left of a blue sphere", 370)
    negative = prompt(graph, clip, "", 570)
    latents = ksampler(graph, modulated, positive, negative, latent)
    (image,) = graph.add("VAEDecode", 2, 480, samples=latents, vae=vae)
    graph.add("SaveImage", 3, TOP, images=image, filename_prefix="HyperNoise", tall=480)


WORKFLOWS: tuple[Callable[[Graph], None], ...] = (
    sana_sprint_text_to_image,
    sana_sprint_side_by_side,
    sana_sprint_mix_two_hypernetworks,
    sana_sprint_noise_prompt,
    sana_sprint_advanced_sampler,
    sana_sprint_best_of_8,
    sana_sprint_compare,
    sana_sprint_reno,
    flux_schnell,
    sd_turbo,
)


def main() -> None:
    """Writes every workflow."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as answer:
        info = json.load(answer)
    for build in WORKFLOWS:
        graph = Graph(info)
        build(graph)
        graph.write(build.__name__)
        print(f"wrote {build.__name__}")


if __name__ == "__main__":
    main()
