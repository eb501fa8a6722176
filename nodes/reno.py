"""The node that searches a noise by gradient ascent on a reward (ReNO)."""

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..hypernoise_core.reno import RenoConfig
from . import comfy_model, pictures, reno_search, widgets
from .rewards import Rewards, RewardType

_PREVIEW = 512  # pixels at most


class FoundNoise:
    """The value of the type NOISE: the result of a search, (B, C, H, W)."""

    def __init__(self, noise: torch.Tensor, seed: int) -> None:
        self._noise, self.seed = noise, seed

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """The noise itself, on the CPU.

        Raises:
            ValueError: the latent has another size or number of images.
        """
        asked, own = tuple(input_latent["samples"].shape), tuple(self._noise.shape)
        if asked != own:
            raise ValueError(
                f"ReNO searched this noise for latents of shape {own}, but the sampler's latent "
                f"has shape {asked}. Connect the same latent to both nodes."
            )
        return self._noise.clone()


class ReNO(io.ComfyNode):
    """NOISE + MODEL + VAE + HYPERNOISE_REWARD -> a NOISE that scores higher."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = RenoConfig()
        return io.Schema(
            node_id="HyperNoise_ReNO",
            display_name="ReNO: Search Noise",
            category="HyperNoise",
            description=(
                "Searches for the noise whose image gets the highest reward, by gradient ascent. "
                "This is much slower than a noise hypernetwork, which needs a single pass. The "
                "search uses one step of the model. Connect the noise to SamplerCustomAdvanced."
            ),
            search_aliases=["test-time optimisation", "noise optimization", "reward gradient"],
            is_output_node=True,
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip=(
                        "Starting point of the search: NOISE from RandomNoise, or from Modulate "
                        "Noise to start from the hypernetwork's noise."
                    ),
                ),
                io.Model.Input("model", tooltip="A one-step generator, such as SANA-Sprint."),
                io.Conditioning.Input("positive", tooltip="The prompt of the guider."),
                io.Latent.Input("latent", tooltip="Sets the size and the batch size."),
                io.Vae.Input("vae", tooltip="The generator's VAE."),
                RewardType.Input("reward", tooltip="A reward from Load Reward."),
                io.String.Input(
                    "prompt", multiline=True, tooltip="The prompt as text, for the reward."
                ),
                io.Int.Input(
                    "iterations", default=defaults.iterations, min=1, max=10000,
                    tooltip="Number of search steps. Each takes about three passes of the model.",
                ),
                io.Float.Input(
                    "learning_rate", default=defaults.learning_rate, min=0.001, max=1000.0,
                    step=0.1, advanced=True, tooltip="Step size of the search.",
                ),
                io.Float.Input(
                    "max_grad_norm", default=defaults.max_grad_norm, min=0.0001, max=1000.0,
                    step=0.01, advanced=True,
                    tooltip="The gradient of each image is clipped to this norm.",
                ),
                io.Float.Input(
                    "penalty", default=defaults.penalty_weight, min=0.0, max=100.0, step=0.001,
                    advanced=True,
                    tooltip=(
                        "Weight of the penalty that keeps the norm of the noise close to that of "
                        "random noise."
                    ),
                ),
                io.Int.Input(
                    "patience", default=defaults.patience, min=0, max=10000, advanced=True,
                    tooltip="Stop after this many steps without a better image. 0 disables it.",
                ),
            ],
            outputs=[
                io.Noise.Output(display_name="noise"),
                io.Image.Output(
                    display_name="images", tooltip="Generated from the noise in one step."
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One score per image."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        noise: io.Noise.Type,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        latent: io.Latent.Type,
        vae: io.Vae.Type,
        reward: Rewards,
        prompt: str,
        iterations: int,
        learning_rate: float,
        max_grad_norm: float,
        penalty: float,
        patience: int,
    ) -> io.NodeOutput:
        widgets.check(
            cls,
            prompt=prompt,
            iterations=iterations,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            penalty=penalty,
            patience=patience,
        )
        config = RenoConfig(
            iterations=iterations,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            penalty_weight=penalty,
            patience=patience,
        )
        latent = comfy_model.latent_for(model, latent)
        # Only the latent's size is used: the search starts from pure noise.
        empty = {**latent, "samples": torch.zeros_like(latent["samples"])}
        start = noise.generate_noise(empty)
        progress = comfy.utils.ProgressBar(iterations)

        before: list[float] = []

        def captioned(images: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            pairs = zip(before, scores.tolist(), strict=True)
            return pictures.with_captions(
                images.movedim(1, -1), [f"{a:.3f} > {b:.3f}" for a, b in pairs]
            )

        def on_step(step: int, images: torch.Tensor, scores: torch.Tensor) -> None:
            if step == 0:
                before.extend(scores.tolist())
            shown = pictures.to_pil(torch.cat(list(captioned(images, scores)[:4]), dim=1))
            progress.update_absolute(step, iterations, ("JPEG", shown, _PREVIEW))

        result = reno_search.search(
            model, positive, vae, reward, prompt, start, noise.seed, config, on_step
        )
        progress.update_absolute(iterations, iterations)
        shown = captioned(result.images, result.scores)
        return io.NodeOutput(
            FoundNoise(result.noise.cpu(), noise.seed),
            result.images.movedim(1, -1).float().cpu(),
            result.scores.tolist(),
            ui=ui.PreviewImage(shown, cls=cls),
        )
