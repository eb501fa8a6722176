"""The nodes that load a SANA-Sprint folder and make an empty latent for it."""

from pathlib import Path

import comfy.model_management as management
import torch
from comfy_api.latest import io

from ...hypernoise_core.library_folder import check_pipeline, safetensors_variant
from .. import model_folders, widgets
from . import autoencoder, network, published, text_encoder
from .diffusers_library import diffusers

PARTS = ("text_encoder", "tokenizer", "transformer", "vae")
PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class LoadSanaSprint(io.ComfyNode):
    """A folder in diffusers' layout -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_LoadSanaSprint",
            display_name="Load SANA-Sprint",
            category="HyperNoise",
            description=(
                "Loads a SANA-Sprint folder in the diffusers layout from models/sana_sprint or "
                "models/diffusers. Sample with cfg 1, the scheduler simple and 1 to 4 steps."
            ),
            search_aliases=["sana", "sana sprint", "load sana", "diffusers loader"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list({**model_folders.sana_sprint_folders(), **published.REPOSITORIES}),
                    tooltip=(
                        "A folder with model_index.json, transformer, text_encoder, tokenizer and "
                        "vae. 'embedded' is the tiny generator included in this extension. The "
                        "published models are always listed; turn on download to get one."
                    ),
                ),
                io.Boolean.Input(
                    "instruction",
                    default=True,
                    tooltip=(
                        "Add SANA's instruction for a detailed description before each prompt, as "
                        "the model's authors do. When off, only the prompt is used."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "Precision of MODEL, CLIP and VAE. auto uses bfloat16 if the device "
                        "supports it, and float32 otherwise."
                    ),
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Download a published model that is not on this machine from Hugging Face "
                        "to models/sana_sprint (several gigabytes). When off, nothing is "
                        "downloaded."
                    ),
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **others: object) -> str:
        return model_folders.fingerprint_of(model_folders.sana_sprint_folders(), folder)

    @classmethod
    def execute(
        cls, folder: str, instruction: bool, precision: str, download: bool = False
    ) -> io.NodeOutput:
        widgets.check(cls, instruction=instruction, precision=precision, download=download)
        path, dtype = _path(folder, download), PRECISIONS[precision]
        variants = _check(path)
        vae = autoencoder.load(path, dtype, variants["vae"])
        model = network.load(path, dtype, vae, variants["transformer"])
        clip = text_encoder.load(path, dtype, instruction, variants["text_encoder"])
        return io.NodeOutput(model, clip, vae)


class EmptySanaLatent(io.ComfyNode):
    """Width, height, batch -> LATENT of zeros."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperNoise_EmptySanaLatent",
            display_name="Empty SANA Latent",
            category="HyperNoise",
            description=(
                "Creates an empty latent for SANA, with 32 channels and one latent pixel per "
                "32 x 32 image pixels. The sampler adapts it to SANA models with a different "
                "latent format, such as the tiny generator."
            ),
            search_aliases=["sana latent", "empty latent image"],
            inputs=[
                _size("width", "Image width in pixels. Use 64 for the tiny embedded generator."),
                _size("height", "Image height in pixels. Use 64 for the tiny embedded generator."),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Number of images in the batch.",
                ),
                io.Boolean.Input(
                    "resolution_bin",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Use the training size of SANA with the closest aspect ratio, which has "
                        "about one megapixel. When off, width and height are used as they are."
                    ),
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls, width: int, height: int, batch_size: int, resolution_bin: bool = False
    ) -> io.NodeOutput:
        widgets.check(
            cls, width=width, height=height, batch_size=batch_size, resolution_bin=resolution_bin
        )
        if resolution_bin:
            width, height = nearest_trained_size(width, height)
        samples = torch.zeros(
            batch_size,
            network.CHANNELS,
            height // network.DOWNSCALE,
            width // network.DOWNSCALE,
            device=management.intermediate_device(),
            dtype=management.intermediate_dtype(),
        )
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": network.DOWNSCALE})


def nearest_trained_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the 1024-pixel bin that the stock pipeline would choose."""
    diffusers()
    from diffusers.image_processor import PixArtImageProcessor
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    height, width = PixArtImageProcessor.classify_height_width_bin(
        height, width, ratios=ASPECT_RATIO_1024_BIN
    )
    return width, height


def _size(name: str, tooltip: str) -> io.Int.Input:
    step = network.DOWNSCALE
    return io.Int.Input(name, default=1024, min=step, max=8192, step=step, tooltip=tooltip)


def _path(folder: str, download: bool) -> Path:
    """The folder on disk, downloaded first if requested.

    Raises:
        ValueError: it is not on this machine.
    """
    known = model_folders.sana_sprint_folders()
    is_published = isinstance(folder, str) and folder in published.REPOSITORIES
    if is_published and folder not in known:
        if download:
            return published.download(folder)
        raise ValueError(
            f"folder '{folder}' is not in models/{model_folders.SANA_SPRINT}. Turn on download "
            f"in Load SANA-Sprint to get it from Hugging Face, or put the folder of the repository "
            f"{published.REPOSITORIES[folder]} there under this name."
        )
    return model_folders.find(known, folder, model_folders.SANA_SPRINT)


def _check(folder: Path) -> dict[str, str | None]:
    """Check that diffusers and transformers read only tensors and JSON, and only of this folder.

    Returns:
        The variant of the weights that each part has.

    Raises:
        ValueError: names the file and the problem.
    """
    model_folders.check_links(folder, model_folders.SANA_SPRINT)
    diffusers()  # says how to install it
    check_pipeline(folder, PARTS)
    return {part: safetensors_variant(folder / part) for part in PARTS if part != "tokenizer"}
