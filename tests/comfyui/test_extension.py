"""ComfyUI loads the extension: nodes, their widgets, help pages."""

import json
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.conftest import FOLDER_NAME, REPOSITORY
from hypernoise.tests.comfyui.server import ComfyServer

SNAPSHOT = Path(__file__).with_name("node_schemas.json")
NODE_IDS = list(json.loads(SNAPSHOT.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def our_nodes(server: ComfyServer) -> dict[str, dict]:
    """Our part of /object_info, without the hidden inputs that ComfyUI gives to output nodes."""
    info = server.object_info()
    ours = {name: node for name, node in info.items() if name.startswith("HyperNoise_")}
    for node in ours.values():
        node["input"].pop("hidden", None)
    return ours


def test_loads_without_a_warning(server: ComfyServer, our_nodes: dict):
    log = server.log()
    assert our_nodes
    assert "IMPORT FAILED" not in log
    assert not [line for line in log.splitlines() if FOLDER_NAME in line and "annot" in line]


def test_node_ids_and_widgets_stay_as_shared_workflows_know_them(our_nodes: dict):
    """A workflow JSON names nodes by id, inputs by name and widget values by position.

    Adding an input at the end is compatible; then add it to node_schemas.json.
    """
    found = {
        name: {
            "inputs": [
                [group, key, spec[0] if isinstance(spec[0], str) else "COMBO"]
                for group, inputs in node["input"].items()
                for key, spec in inputs.items()
            ],
            "outputs": node["output"],
        }
        for name, node in our_nodes.items()
    }
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_node_and_widget_explains_itself(our_nodes: dict):
    for name, node in our_nodes.items():
        assert node["category"] == "HyperNoise"
        assert node["description"] and node["search_aliases"], name
        for inputs in node["input"].values():
            for key, spec in inputs.items():
                assert spec[1].get("tooltip"), f"{name}.{key}"


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_help_page_is_served_under_the_folder_name(server: ComfyServer, node_id: str):
    page = server.get(f"/extensions/{FOLDER_NAME}/docs/{node_id}.md").decode()
    assert page == (REPOSITORY / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("locale", sorted(path.name for path in (REPOSITORY / "locales").iterdir()))
def test_translations_cover_every_node_and_input_and_nothing_else(our_nodes: dict, locale: str):
    file = REPOSITORY / "locales" / locale / "nodeDefs.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {name: set(texts["inputs"]) for name, texts in found.items()} == {
        name: {key for inputs in node["input"].values() for key in inputs}
        for name, node in our_nodes.items()
    }
