"""SANA-Sprint's noise levels as ComfyUI SIGMAS."""

import math

import torch
from comfy_api.latest import io

from .. import widgets

MAX_TIMESTEP = 1.57080  # the pipeline's default, pi / 2 up to rounding
INTERMEDIATE_TIMESTEP = 1.3  # of two steps, also the pipeline's default


class SanaSprintSigmas(io.ComfyNode):
    """Steps and TrigFlow timesteps -> SIGMAS, for SamplerCustom with the sampler lcm."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_SanaSprintSigmas",
            display_name="SANA-Sprint Sigmas",
            category="HyperNoise",
            description=(
                "Creates the sigmas of SANA-Sprint's own scheduler. With SamplerCustom, the "
                "sampler lcm and cfg 1, the result matches the published pipeline."
            ),
            search_aliases=["sana scheduler", "scm scheduler", "trigflow", "sigmas"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=2,
                    min=1,
                    max=32,
                    tooltip="Number of sampling steps. 1 to 4 are enough.",
                ),
                io.Float.Input(
                    "max_timestep",
                    default=MAX_TIMESTEP,
                    min=0.01,
                    max=MAX_TIMESTEP,
                    step=0.0001,
                    round=0.00001,
                    advanced=True,
                    tooltip="TrigFlow angle of the first step in radians. pi / 2 is pure noise.",
                ),
                io.Float.Input(
                    "intermediate_timestep",
                    default=INTERMEDIATE_TIMESTEP,
                    min=0.01,
                    max=MAX_TIMESTEP,
                    step=0.0001,
                    round=0.00001,
                    advanced=True,
                    tooltip="Angle of the second step in radians. Only used with two steps.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(
        cls, steps: int, max_timestep: float, intermediate_timestep: float
    ) -> io.NodeOutput:
        widgets.check(
            cls,
            steps=steps,
            max_timestep=max_timestep,
            intermediate_timestep=intermediate_timestep,
        )
        return io.NodeOutput(sigmas(steps, max_timestep, intermediate_timestep))


def sigmas(
    steps: int,
    max_timestep: float = MAX_TIMESTEP,
    intermediate_timestep: float = INTERMEDIATE_TIMESTEP,
) -> torch.Tensor:
    """(steps + 1,) float32 from noise to 0: sin t / (sin t + cos t) at SCMScheduler's angles t.

    Raises:
        ValueError: the second of two steps would not be below the first.
    """
    if steps == 2 and intermediate_timestep >= max_timestep:
        raise ValueError(
            f"intermediate_timestep ({intermediate_timestep}) must be less than max_timestep "
            f"({max_timestep})."
        )
    if steps == 2:
        angles = [max_timestep, intermediate_timestep, 0.0]
    else:
        angles = [max_timestep * (1 - i / steps) for i in range(steps + 1)]
    levels = [math.sin(t) / (math.sin(t) + math.cos(t)) for t in angles]
    return torch.tensor(levels)
