"""Loads the diffusers pipeline that a hypernetwork is trained on or runs with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..hypernoise_core.file_identity import identity_of
from ..hypernoise_core.library_folder import building_from, check_pipeline, read_json
from .embedded_models import EMBEDDED
from .progress import keep_loading_quiet
from .published_models import PUBLISHED

TEXT_PARTS = ("text_encoder", "tokenizer")
"""What the names of a pipeline's parts start with that turn prompts into conditioning."""


def model_folder(name: str, cache_dir: Path | None = None) -> Path:
    """Where a model is on this machine.

    Args:
        name: an embedded model (`tiny-sprint`), a published one (`sana`, `flux`, `sd-turbo`), a
            folder in diffusers' layout, or the name of a repository in the cache.
        cache_dir: None: the Hugging Face cache.

    Raises:
        FileNotFoundError: the folder has no `model_index.json`, or there is no such model here.
        ImportError: names the missing package and the command that installs it.
    """
    path = EMBEDDED.get(name, Path(name))
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{path} is not a diffusers pipeline: it has no model_index.json"
            )
        return path
    repository = PUBLISHED[name].repository if name in PUBLISHED else name
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    try:
        index = try_to_load_from_cache(repository, "model_index.json", cache_dir=cache_dir)
    except HFValidationError:  # it cannot be the name of a repository
        index = None
    if not isinstance(index, str):
        known = ", ".join((*EMBEDDED, *PUBLISHED))
        raise FileNotFoundError(
            f"no model {name!r}: give one of {known}, a diffusers folder, or a repository in the "
            f"Hugging Face cache (to download it: hf download {repository})"
        )
    return Path(index).parent


def model_identity(folder: Path, parts: Sequence[str] | None = None) -> str:
    """An identity of a model's content; see `identity_of`.

    Args:
        folder: from `model_folder`.
        parts: of the pipeline; None: all, and what the pipeline says of itself.

    Raises:
        FileNotFoundError: the model has no file of such parts.
        LibraryFolderError: its model_index.json cannot be read.
    """
    index = folder / "model_index.json"
    if parts is None:
        parts = [name for name, value in read_json(index).items() if isinstance(value, list)]
        files = [index]
    else:
        files = []
    files += [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    if not files:
        raise FileNotFoundError(f"there is no file of {' or '.join(parts)} in {folder}")
    return identity_of({path.relative_to(folder).as_posix(): path for path in files}, folder)


_INSTALL = 'this needs diffusers and transformers: pip install "hypernoise[train]"'


def load_pipeline(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    cache_dir: Path | None = None,
    text_encoders: bool = True,
) -> Any:
    """A frozen pipeline in evaluation mode.

    Args:
        name: see `model_folder`.
        text_encoders: False: without the parts that encode prompts.

    Raises:
        ImportError: names the missing package and the command that installs it.
        FileNotFoundError: there is no such model here, or a part of it is missing.
        LibraryFolderError: the model would run code, read files outside of its folder, or build a
            larger network than it has weights for.
    """
    folder = model_folder(name, cache_dir)
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    keep_loading_quiet()
    left_out = {} if text_encoders else dict.fromkeys(text_parts(folder))
    check_pipeline(folder)
    try:
        with building_from(folder):
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, **left_out
            )
    except OSError as error:
        raise FileNotFoundError(
            f"{folder} is not a complete diffusers pipeline: {error}"
        ) from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            component.to(memory_format=torch.channels_last)  # faster convolutions, same values
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def text_parts(folder: Path) -> list[str]:
    """Names of the parts of the pipeline in a folder that encode prompts."""
    index = read_json(folder / "model_index.json")
    return [name for name in index if name.startswith(TEXT_PARTS)]
