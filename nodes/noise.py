"""Nodes for noise: modulate NOISE, inspect it, and make lists of seeds."""

from typing import Any

import torch
from comfy_api.latest import io, ui

from . import comfy_model, widgets
from .hypernetwork import HypernoiseType, at_partial_noise_input, strength_input
from .sampling_run import is_empty


class ModulatedNoise:
    """The value of the type NOISE: another NOISE, modulated for one model and prompt.

    Args:
        sigmas: those of the sampler; None: unknown.
    """

    def __init__(
        self, noise: Any, model: Any, positive: list, sigmas: torch.Tensor | None = None
    ) -> None:
        self._noise, self._model, self._positive = noise, model, positive
        self._sigmas = sigmas
        self.seed = noise.seed

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """(B, C, H, W) on the CPU, for a LATENT in the model's format, as samplers pass it."""
        noise = self._noise.generate_noise(input_latent)
        if self._sigmas is None and not is_empty(input_latent["samples"]):
            comfy_model.LOG.warning(
                "HyperNoise: Modulate Noise did not change the noise. The sampler's latent is not "
                "empty, and without sigmas the node cannot know whether its image is mixed into "
                "the noise. Connect the sampler's sigmas to Modulate Noise."
            )
            return noise
        return comfy_model.modulated_noise(
            self._model, self._positive, noise, self.seed, input_latent, self._sigmas
        )


class ModulateNoise(io.ComfyNode):
    """NOISE + MODEL + CONDITIONING + HYPERNOISE -> NOISE, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_ModulateNoise",
            display_name="Modulate Noise",
            category="HyperNoise",
            description=(
                "Modulates NOISE with a hypernetwork, for SamplerCustomAdvanced. Connect the plain "
                "model to its guider. With a model from Apply Noise Hypernetwork, the noise is "
                "changed twice."
            ),
            search_aliases=["hypernoise", "noise hypernetwork", "better noise", "random noise"],
            inputs=[
                io.Noise.Input("noise", tooltip="NOISE from RandomNoise or a similar node."),
                io.Model.Input(
                    "model", tooltip="The generator that the hypernetwork was trained on."
                ),
                io.Conditioning.Input("positive", tooltip="The prompt of the guider."),
                HypernoiseType.Input(
                    "hypernoise", tooltip="A hypernetwork from Load Noise Hypernetwork."
                ),
                strength_input(),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip=(
                        "The sampler's sigmas, which define where sampling starts. When not "
                        "connected, the noise is changed only for an empty latent, as at full "
                        "noise."
                    ),
                ),
                at_partial_noise_input(),
            ],
            outputs=[io.Noise.Output(display_name="noise")],
        )

    @classmethod
    def execute(
        cls,
        noise: io.Noise.Type,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        hypernoise: comfy_model.Hypernoise,
        strength: float,
        sigmas: io.Sigmas.Type | None = None,
        at_partial_noise: str = comfy_model.LEAVE,
    ) -> io.NodeOutput:
        widgets.check(cls, strength=strength, at_partial_noise=at_partial_noise)
        if sigmas is None and at_partial_noise == comfy_model.SCALE:
            raise ValueError(
                f"at_partial_noise is '{comfy_model.SCALE}', so Modulate Noise has to know where "
                f"sampling starts. Connect the sampler's sigmas to it."
            )
        if strength == 0:
            return io.NodeOutput(noise)
        modulated = comfy_model.apply(
            model, hypernoise, strength, at_partial_noise=at_partial_noise
        )
        return io.NodeOutput(ModulatedNoise(noise, modulated, positive, sigmas))


class NoiseToLatent(io.ComfyNode):
    """NOISE -> LATENT, as a sampler would see it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_NoiseToLatent",
            display_name="Noise to Latent",
            category="HyperNoise",
            description=(
                "Generates noise in the size of a latent, to decode or save it. Samplers cannot "
                "start from the result, because they take NOISE or a seed, not a noisy latent."
            ),
            search_aliases=["noise latent", "look at noise", "decode noise"],
            inputs=[
                io.Noise.Input("noise", tooltip="NOISE from RandomNoise or Modulate Noise."),
                io.Model.Input(
                    "model", tooltip="The generator, which defines the format of the latent."
                ),
                io.Latent.Input("latent", tooltip="Sets the size and the batch size."),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, noise: io.Noise.Type, model: io.Model.Type, latent: io.Latent.Type
    ) -> io.NodeOutput:
        latent = comfy_model.latent_for(model, latent)
        drawn = noise.generate_noise(latent)
        return io.NodeOutput({**latent, "samples": comfy_model.to_graph_latent(model, drawn)})


class PreviewDelta(io.ComfyNode):
    """Decodes a noise, its change and the changed noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_PreviewDelta",
            display_name="Preview Noise Delta",
            category="HyperNoise",
            description=(
                "Shows what a hypernetwork does: the noise, the change and the modulated noise, "
                "each decoded with the VAE. The images are only for inspection."
            ),
            search_aliases=["visualize noise", "noise difference", "hypernoise preview"],
            is_output_node=True,
            inputs=[
                io.Noise.Input("noise", tooltip="The noise before Modulate Noise."),
                io.Noise.Input("modulated_noise", tooltip="The noise after Modulate Noise."),
                io.Model.Input("model", tooltip="The generator."),
                io.Latent.Input("latent", tooltip="Sets the size and the batch size."),
                io.Vae.Input("vae", tooltip="The generator's VAE."),
            ],
            outputs=[
                io.Image.Output(display_name="noise"),
                io.Image.Output(display_name="delta"),
                io.Image.Output(display_name="modulated_noise"),
            ],
        )

    @classmethod
    def execute(
        cls,
        noise: io.Noise.Type,
        modulated_noise: io.Noise.Type,
        model: io.Model.Type,
        latent: io.Latent.Type,
        vae: io.Vae.Type,
    ) -> io.NodeOutput:
        latent = comfy_model.latent_for(model, latent)
        before = noise.generate_noise(latent)
        after = modulated_noise.generate_noise(latent)
        images = [
            vae.decode(comfy_model.to_graph_latent(model, latents))
            for latents in (before, after - before, after)
        ]
        return io.NodeOutput(*images, ui=ui.PreviewImage(torch.cat(images), cls=cls))


class Seeds(io.ComfyNode):
    """A seed and a count -> a list of consecutive seeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_Seeds",
            display_name="Seeds",
            category="HyperNoise",
            description=(
                "Creates a list of consecutive seeds. A sampler runs once for each of them, so "
                "every image can be reproduced from its own seed."
            ),
            search_aliases=["seed list", "many seeds", "seed range", "best of n"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF - 4096,
                    control_after_generate=True,
                    tooltip="The first seed. Each of the following seeds is one higher.",
                ),
                io.Int.Input("count", default=8, min=1, max=4096, tooltip="The number of seeds."),
            ],
            outputs=[io.Int.Output(display_name="seeds", is_output_list=True)],
        )

    @classmethod
    def execute(cls, seed: int, count: int) -> io.NodeOutput:
        widgets.check(cls, seed=seed, count=count)
        return io.NodeOutput([seed + i for i in range(count)])
