"""The nodes that load a noise hypernetwork and put it in front of a sampler."""

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
            "Factor on the change of the noise. 1 is what was trained; 0 runs nothing "
            "and gives the plain model's image."
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
                "Loads a noise hypernetwork (LoRA weights that turn random noise into better noise "
                "for one generator) from models/hypernoise."
            ),
            search_aliases=["hypernoise", "hypernetwork loader", "noise lora", "adapter"],
            inputs=[
                io.Combo.Input(
                    "hypernetwork",
                    options=list(model_folders.hypernetworks()),
                    tooltip=(
                        "A .safetensors or .bin file, or a peft folder, in models/hypernoise. "
                        "It works with the generator it was trained on."
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
                "Lets the hypernetwork rewrite the noise just before any sampler starts on it: one "
                "extra pass of the model, whatever the number of steps. The model's weights stay "
                "as they are. Several of these nodes in a row add up."
            ),
            search_aliases=["hypernoise", "modulate noise", "noise hypernetwork", "better noise"],
            inputs=[
                io.Model.Input("model", tooltip="The generator that the hypernetwork belongs to."),
                HypernoiseType.Input("hypernoise", tooltip="From Load Noise Hypernetwork."),
                strength_input(),
                io.Conditioning.Input(
                    "noise_prompt",
                    optional=True,
                    tooltip=(
                        "What the hypernetwork reads in place of the sampler's positive prompt. "
                        "The image is still made from the positive prompt."
                    ),
                ),
                io.Combo.Input(
                    "at_partial_noise",
                    options=list(comfy_model.PARTIAL_NOISE),
                    default=comfy_model.LEAVE,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Where sampling starts below full noise (denoise below 1, a later first "
                        "step). A hypernetwork knows pure noise only, so it is left out there; "
                        "the other choice uses its change times the share of noise."
                    ),
                ),
                io.Combo.Input(
                    "out_of_memory",
                    options=list(comfy_model.OUT_OF_MEMORY),
                    default=comfy_model.STOP,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Where memory runs out, the pass is tried again image by image, with other "
                        "models unloaded. This is for the case that even that does not fit."
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
