"""Loads the diffusers pipeline that a hypernetwork is trained on or runs with."""

from pathlib import Path
from typing import Any

import torch

ASSETS = Path(__file__).resolve().parents[1] / "assets"
EMBEDDED = {"tiny-sprint": ASSETS / "tiny-sprint"}


def load_pipeline(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Any:
    """A frozen pipeline in evaluation mode.

    Args:
        name: an embedded model (`tiny-sprint`), a folder in diffusers' layout, or the name of a
            repository that lies in the Hugging Face cache.

    Raises:
        ImportError: names the missing package and the command that installs it.
        FileNotFoundError: the folder has no `model_index.json`, or there is no such model here.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError(
            'this needs diffusers and transformers: pip install "hypernoise[train]"'
        ) from error
    path = EMBEDDED.get(name, Path(name))
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise FileNotFoundError(f"{path} is no diffusers pipeline: it has no model_index.json")
    source = str(path) if path.is_dir() else name
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype, local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"no model {name!r}: it is neither embedded ({', '.join(EMBEDDED)}) nor a folder, and "
            f"the Hugging Face cache does not hold it (hf download {name} fetches it)"
        ) from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            component.to(memory_format=torch.channels_last)  # faster convolutions, same values
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
