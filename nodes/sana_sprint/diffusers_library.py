"""diffusers, imported when a SANA folder is loaded."""

import sys
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch


def diffusers() -> ModuleType:
    """The library, which ComfyUI itself does not need.

    Raises:
        ImportError: it, or its SANA-Sprint, is missing; names the command that installs it.
    """
    try:
        import diffusers as library

        library.SanaSprintPipeline  # noqa: B018  the library imports lazily; this fails if too old
    except (ImportError, AttributeError, RuntimeError) as error:
        # The newest diffusers would bring a huggingface-hub that transformers 4 refuses: hold it.
        raise ImportError(
            f"Load SANA-Sprint requires the package diffusers 0.33 or newer ({error}). Install it "
            f"in ComfyUI's Python environment and restart ComfyUI: {sys.executable} -m pip install "
            f'"diffusers>=0.33" huggingface-hub=={version("huggingface-hub")}'
        ) from error
    return library


def from_folder(dtype: torch.dtype, variant: str | None) -> dict[str, Any]:
    """Arguments of `from_pretrained`: weights in `dtype`, of .safetensors files of this variant,
    nothing from the network."""
    major, minor = diffusers().__version__.split(".")[:2]
    renamed = (int(major), int(minor)) >= (0, 40)
    name = "dtype" if renamed else "torch_dtype"
    common = {"local_files_only": True, "use_safetensors": True}
    return {name: dtype, "variant": variant, **common}
