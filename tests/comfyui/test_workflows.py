"""The graphs in workflows/: each agrees with the nodes, with its API twin, and runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernoise.tests.comfyui.conftest import FOLDER_NAME, REPOSITORY
from hypernoise.tests.comfyui.server import ComfyServer

WORKFLOWS = REPOSITORY / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
EMBEDDED = "sana_sprint_"  # graphs on the generator that comes along; others need real models
NOTES = {"Note", "MarkdownNote"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def ui_graph(workflow: dict, info: dict[str, dict]) -> dict:
    """A UI workflow in API format, as the front end's export would write it."""
    links = {link[0]: link for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        spec = info[node["type"]]
        linked = {
            slot["name"]: [str(links[slot["link"]][1]), links[slot["link"]][2]]
            for slot in node["inputs"]
            if slot.get("link") is not None
        }
        widgets = dict(zip(widget_names(spec), values(node, spec), strict=True))
        inputs = {**widgets, **linked}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def widget_names(spec: dict) -> list[str]:
    """Inputs with a widget, in order: values of their own instead of a link."""
    plain = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return [
        name
        for group in ("required", "optional")
        for name, (kind, *options) in spec["input"].get(group, {}).items()
        if (isinstance(kind, list) or kind in plain)
        and not (options and options[0].get("forceInput"))
    ]


def values(node: dict, spec: dict) -> list:
    """widgets_values without the "control after generate" that the front end puts after a seed."""
    controlled = any(
        len(entry) > 1 and entry[1].get("control_after_generate")
        for entry in spec["input"].get("required", {}).values()
    )
    if not controlled:
        return node["widgets_values"]
    return [v for v in node["widgets_values"] if v not in CONTROL_VALUES or not isinstance(v, str)]


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> dict[str, dict]:
    return server.object_info()


def test_there_are_workflows_and_each_has_an_api_twin():
    assert NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_links_and_slots_fit_the_nodes(info, name):
    """What the front end checks when it opens the file: no missing node, no red socket."""
    workflow = read(WORKFLOWS / f"{name}.json")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for number, source, out_slot, target, in_slot, kind in workflow["links"]:
        output = nodes[source]["outputs"][out_slot]
        entry = nodes[target]["inputs"][in_slot]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == entry["type"] == kind
        assert info[nodes[source]["type"]]["output"][out_slot] == kind
        spec = info[nodes[target]["type"]]["input"]
        assert {**spec["required"], **spec.get("optional", {})}[entry["name"]][0] == kind
    for node in nodes.values():
        if node["type"] not in NOTES:
            names = info[node["type"]]["output_name"]
            assert [output["name"] for output in node["outputs"]] == list(names)


@pytest.mark.parametrize("name", NAMES)
def test_ui_and_api_files_hold_the_same_graph(info, name):
    api = read(WORKFLOWS / "api" / f"{name}.json")
    stripped = {
        key: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for key, node in api.items()
    }
    assert ui_graph(read(WORKFLOWS / f"{name}.json"), info) == stripped


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(EMBEDDED)])
def test_runs_as_shipped(server, info, name):
    """On the embedded generator and hypernetwork, by the values saved in the file."""
    run = server.run(read(WORKFLOWS / "api" / f"{name}.json"))
    assert run.error is None, run.error
    saved = [
        server.base / "output" / entry["subfolder"] / entry["filename"]
        for output in run.outputs.values()
        for entry in output.get("images", ())
        if entry["type"] == "output"
    ]
    assert saved
    for path in saved:
        image = np.asarray(Image.open(path))
        assert image.ndim == 3 and image.std() > 5, path.name


def test_template_browser_lists_only_the_ui_files(server):
    listed = json.loads(server.get("/workflow_templates"))
    assert sorted(listed[FOLDER_NAME]) == NAMES
