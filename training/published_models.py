"""The generators that the reference trains: where they are, and their shapes without weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hypernoise_core.families import FAMILIES, family_of_pipeline
from ..hypernoise_core.library_folder import building_from, check_pipeline, read_json
from ..hypernoise_core.strict_json import parse_object
from ..hypernoise_core.text_file import read_text

_ARCHITECTURES = Path(__file__).with_name("architectures")
_CLASS = "_class_name"


@dataclass(frozen=True)
class PublishedModel:
    """Facts about one generator."""

    repository: str
    """Its name on the Hugging Face hub."""
    image_size: int
    """Height and width in pixels of the images that the reference trains on."""
    family: str
    """Name of its family, as `get_family` takes it."""
    parameters: int
    """Numbers in its network, without VAE and text encoders."""


PUBLISHED = {
    "sana": PublishedModel(
        repository="Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
        image_size=1024,
        family="sana_sprint",
        parameters=593_501_216,  # published as 0.6B; counted from the published shapes
    ),
    "flux": PublishedModel(
        repository="black-forest-labs/FLUX.1-schnell",
        image_size=512,
        family="flux",
        parameters=11_891_178_560,
    ),
    "sd-turbo": PublishedModel(
        repository="stabilityai/sd-turbo",
        image_size=512,
        family="sd_turbo",
        parameters=865_910_724,
    ),
}
"""By the names that commands take."""


def image_size(model: str, side: int | None, pipeline: Any) -> tuple[int, int]:
    """Height and width of the images in pixels: the side if given, else the model's own."""
    if side is None and model in PUBLISHED:
        side = PUBLISHED[model].image_size
    if side is None:
        side = family_of_pipeline(pipeline).default_size(pipeline)
    return side, side


def build_on_meta(name: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of shapes alone: network and VAE on the meta device, without text encoders.

    Args:
        name: a published model, or a folder in diffusers' layout, of which only the configurations
            are read.
        dtype: of network and VAE.

    Raises:
        ValueError: no published model has that name, or no family has such a pipeline.
        FileNotFoundError: a part of the pipeline is missing in the folder.
        LibraryFolderError: the folder's configurations lead elsewhere, or ask for a network that is
            larger than its weights.
    """
    if Path(name).is_dir():
        with building_from(Path(name)):
            return _assemble(_read_folder(Path(name)), dtype)
    if name not in PUBLISHED:
        raise ValueError(f"unknown published model {name!r}, choose from {', '.join(PUBLISHED)}")
    return _assemble(read_json(_ARCHITECTURES / f"{name}.json"), dtype)


def copy_to_meta(pipeline: Any, dtype: torch.dtype) -> Any:
    """What `build_on_meta` gives, for a pipeline in memory, which stays as it is."""
    family = family_of_pipeline(pipeline)
    parts = {name: getattr(pipeline, name) for name in _parts(family.pipeline_class)}
    configs = {n: {**part.config, _CLASS: type(part).__name__} for n, part in parts.items()}
    return _assemble({_CLASS: family.pipeline_class, **configs}, dtype)


def _parts(pipeline_class: str) -> tuple[str, str, str]:
    for family in FAMILIES:
        if family.pipeline_class == pipeline_class:
            return family.network_attribute, "vae", "scheduler"
    known = ", ".join(family.pipeline_class for family in FAMILIES)
    raise ValueError(f"no family uses a {pipeline_class}, known pipelines are {known}")


def _read_folder(folder: Path) -> dict[str, Any]:
    """The pipeline's class and the configurations of its parts, by name."""

    def read(path: str) -> dict[str, Any]:
        return parse_object(read_text(folder / path))

    architecture = {_CLASS: read("model_index.json")[_CLASS]}
    check_pipeline(folder, _parts(architecture[_CLASS]))
    for name in _parts(architecture[_CLASS]):
        architecture[name] = read(
            "scheduler/scheduler_config.json" if name == "scheduler" else f"{name}/config.json"
        )
    return architecture


def _assemble(architecture: Mapping[str, Any], dtype: torch.dtype) -> Any:
    import diffusers

    cls = getattr(diffusers, architecture[_CLASS])
    names = _parts(architecture[_CLASS])
    with torch.device("meta"):
        configs = {name: architecture[name] for name in names[:2]}
        parts = {n: getattr(diffusers, c[_CLASS]).from_config(c) for n, c in configs.items()}
    for part in parts.values():
        part.eval().requires_grad_(False)
        # Not diffusers' own `to`: it warns of layers that stay in float32, even if there are none.
        nn.Module.to(part, dtype=dtype)
    with torch.device("cpu"):
        scheduler = architecture["scheduler"]
        parts["scheduler"] = getattr(diffusers, scheduler[_CLASS]).from_config(scheduler)
    arguments = inspect.signature(cls.__init__).parameters
    left_out = dict.fromkeys(n for n, a in arguments.items() if a.default is a.empty)
    del left_out["self"]
    if "requires_safety_checker" in arguments:
        left_out["requires_safety_checker"] = False  # else it warns that it has none
    return cls(**{**left_out, **parts})
