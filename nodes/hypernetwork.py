"""The nodes that load a noise hypernetwork and apply it to a model."""

from comfy_api.latest import io

from ..hypernoise_core.adapter import load_adapter
from . import comfy_model, model_folders, widgets

HypernoiseType = io.Custom("HYPERNOISE")


def strength_input() -> io.Float.Input:
    """The widget of the nodes that use a hypernetwork."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        tooltip=(
            "Multiplier for the change of the noise. 1 is the strength used in training. 0 skips "
            "the hypernetwork and gives the plain model's image."
        ),
    )


def at_partial_noise_input() -> io.Combo.Input:
    """The widget of the nodes that may run with a sampler that starts below full noise."""
    return io.Combo.Input(
        "at_partial_noise",
        options=list(comfy_model.PARTIAL_NOISE),
        default=comfy_model.LEAVE,
        optional=True,
        advanced=True,
        tooltip=(
            "What to do when an image is mixed into the noise, because the latent is not empty and "
            "denoise is below 1 or sampling starts at a later step. Hypernetworks are trained on "
            "pure noise, so by default the noise is not changed. The other option multiplies the "
            "change by the share of noise."
        ),
    )


class LoadHypernetwork(io.ComfyNode):
    """A file or peft folder of models/hypernoise -> HYPERNOISE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_LoadHypernetwork",
            display_name="Load Noise Hypernetwork",
            category="HyperNoise",
            description=(
                "Loads a noise hypernetwork from models/hypernoise. A noise hypernetwork is a set "
                "of LoRA weights that turns random noise into better noise for one generator."
            ),
            search_aliases=["hypernoise", "hypernetwork loader", "noise lora", "adapter"],
            inputs=[
                io.Combo.Input(
                    "hypernetwork",
                    options=list(model_folders.hypernetworks()),
                    tooltip=(
                        "A .safetensors or .bin file, or a PEFT folder, in models/hypernoise. Use "
                        "it with the generator it was trained on."
                    ),
                )
            ],
            outputs=[HypernoiseType.Output(display_name="hypernoise")],
        )

    @classmethod
    def fingerprint_inputs(cls, hypernetwork: str | None) -> str:
        return model_folders.fingerprint_of(model_folders.hypernetworks(), hypernetwork)

    @classmethod
    def execute(cls, hypernetwork: str) -> io.NodeOutput:
        known = model_folders.hypernetworks()
        adapter = load_adapter(model_folders.find(known, hypernetwork, model_folders.HYPERNOISE))
        return io.NodeOutput(comfy_model.Hypernoise.of(adapter, name=hypernetwork))


class ApplyHypernetwork(io.ComfyNode):
    """MODEL + HYPERNOISE -> MODEL whose samplers start from modulated noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_Apply",
            display_name="Apply Noise Hypernetwork",
            category="HyperNoise",
            description=(
                "Modulates the noise with a hypernetwork just before a sampler starts. This takes "
                "one extra pass of the model, whatever the number of steps, and does not change "
                "the model's weights. Several of these nodes in a row add up."
            ),
            search_aliases=["hypernoise", "modulate noise", "noise hypernetwork", "better noise"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The generator that the hypernetwork was trained on."
                ),
                HypernoiseType.Input(
                    "hypernoise", tooltip="A hypernetwork from Load Noise Hypernetwork."
                ),
                strength_input(),
                io.Conditioning.Input(
                    "noise_prompt",
                    optional=True,
                    tooltip=(
                        "A separate prompt for the hypernetwork, including its LoRA hooks. When "
                        "not connected, the hypernetwork uses the sampler's positive prompt. The "
                        "sampler always uses its own prompt."
                    ),
                ),
                at_partial_noise_input(),
                io.Combo.Input(
                    "out_of_memory",
                    options=list(comfy_model.OUT_OF_MEMORY),
                    default=comfy_model.STOP,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What to do when the hypernetwork's pass does not fit into memory, even "
                        "one image at a time and with other models unloaded."
                    ),
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        hypernoise: comfy_model.Hypernoise,
        strength: float,
        noise_prompt: io.Conditioning.Type | None = None,
        at_partial_noise: str = comfy_model.LEAVE,
        out_of_memory: str = comfy_model.STOP,
    ) -> io.NodeOutput:
        widgets.check(
            cls,
            strength=strength,
            at_partial_noise=at_partial_noise,
            out_of_memory=out_of_memory,
        )
        return io.NodeOutput(
            comfy_model.apply(
                model, hypernoise, strength, noise_prompt, at_partial_noise, out_of_memory
            )
        )
