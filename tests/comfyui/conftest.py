"""ComfyUI, models and a running server for the tests in this folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.fetch_comfyui import comfyui_path
from hypernoise.tests.comfyui.server import ComfyServer
from hypernoise.tests.comfyui.stand_ins import ADAPTERS, write_models

REPOSITORY = Path(__file__).resolve().parents[2]
# No space and no dot: ComfyUI serves help pages only for such names. inside/ has the other kind.
FOLDER_NAME = "ComfyUI-Hyper_Noise"
INSIDE = "HYPERNOISE_INSIDE_COMFYUI"  # names ComfyUI's folder in the process of inside/

# These tests import ComfyUI; test_inside_comfyui.py runs them in a process of their own.
collect_ignore = [] if os.environ.get(INSIDE) else ["inside"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test below this folder needs ComfyUI."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.comfyui)


@dataclass(frozen=True)
class Models:
    """What lies in the models folder of the tests' base directory."""

    base: Path
    folder: str  # the name of the generator in Load SANA-Sprint
    folder_path: Path

    def adapter(self, name: str) -> Path:
        """The path of one of the random hypernetworks of stand_ins.py."""
        return self.base / "models" / "hypernoise" / name


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of a real ComfyUI."""
    return comfyui_path()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A base directory with a generator and hypernetworks, and this extension linked into it."""
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / FOLDER_NAME).symlink_to(REPOSITORY, True)
    folder, folder_path = write_models(base / "models", REPOSITORY / "assets")
    return Models(base, folder, folder_path)


@pytest.fixture(scope="session")
def server(comfyui: Path, models: Models) -> Iterator[ComfyServer]:
    """A running server, shared by all tests."""
    with ComfyServer(comfyui, models.base) as running:
        yield running


@pytest.fixture(params=ADAPTERS)
def adapter_name(request: pytest.FixtureRequest) -> str:
    """Each random hypernetwork in turn: as a file, as a peft folder."""
    return request.param
