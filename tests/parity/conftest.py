"""The recorded cases of the reference implementation, one test run for each of their folders."""

import json
import os
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.families import FAMILIES, Family

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT.parent / "shared" / "reference"
CONDITIONING = ("prompt_embeds", "prompt_attention_mask", "guidance", "pooled_prompt_embeds")


class Case:
    """One folder: a stock pipeline without text encoders, the adapter, inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family = family_of_folder(folder)
        self.hypernetwork = load_adapter(folder / "adapter")
        self.tensors = load_file(folder / "inference.safetensors")
        self.pipeline = build_pipeline(self.family, folder)
        self.network = self.family.network(self.pipeline)
        self.noise = self.tensors["noise"]
        self.conditioning = {
            name: self.tensors[name] for name in CONDITIONING if name in self.tensors
        }

    @property
    def image_size(self) -> tuple[int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.noise.shape[-2] * factor, self.noise.shape[-1] * factor


def family_of_folder(folder: Path) -> Family | None:
    """The family whose network the folder holds; None for cases of another kind."""
    for family in FAMILIES:
        config = folder / family.network_attribute / "config.json"
        if (
            config.is_file()
            and json.loads(config.read_text())["_class_name"] == family.network_class
        ):
            return family
    return None


def build_pipeline(family: Family, folder: Path) -> diffusers.DiffusionPipeline:
    parts = {name: load_component(folder / name) for name in (family.network_attribute, "vae")}
    parts["scheduler"] = load_component(folder / "scheduler", "scheduler_config.json")
    return assemble(family, parts)


def load_component(folder: Path, config_name: str = "config.json") -> object:
    name = json.loads((folder / config_name).read_text())["_class_name"]
    component = getattr(diffusers, name).from_pretrained(folder)
    return component.eval() if isinstance(component, torch.nn.Module) else component


def assemble(family: Family, parts: dict[str, object]) -> diffusers.DiffusionPipeline:
    """The family's stock pipeline of these parts, with None for the text encoders and the like."""
    cls = getattr(diffusers, family.pipeline_class)
    expected, _ = cls._get_signature_keys(cls)
    empty = dict.fromkeys(expected - parts.keys() - {"self"})
    return cls(**parts, **empty)


def case_folders() -> list[Path]:
    root = Path(os.environ.get("HYPERNOISE_REFERENCE") or DEFAULT_FOLDER)
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in folders if (folder / "inference.safetensors").is_file()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    folders = case_folders()
    if not folders:
        reason = (
            f"no reference cases: HYPERNOISE_REFERENCE is not set and {DEFAULT_FOLDER} not there"
        )
        folders = [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    metafunc.parametrize(
        "case", folders, ids=lambda folder: folder.name, indirect=True, scope="session"
    )


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)
