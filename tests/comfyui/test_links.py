"""What nodes get over links, through the server: linked widgets, outputs without their input."""

import json

import pytest

from hypernoise.tests.comfyui import stand_ins
from hypernoise.tests.comfyui.graphs import text_to_image
from hypernoise.tests.comfyui.server import ComfyServer


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def test_a_linked_name_is_kept_until_its_file_is_replaced(server: ComfyServer, models):
    path = models.adapter("linked.safetensors")
    path.write_bytes(models.adapter(stand_ins.FILE).read_bytes())
    graph = text_to_image(models.folder, seed=31, hypernetworks=((path.name, 1.0),))
    graph["text"] = node("PrimitiveString", value=path.name)
    graph["name"] = node("CreateList", **{"inputs.input0": ["text", 0]})
    graph["load0"]["inputs"]["hypernetwork"] = ["name", 0]
    before = len(server.log())
    first, again = server.run(graph), server.run(graph)
    assert first.error is None and again.executed == []
    assert "WARNING" not in server.log()[before:]
    path.write_bytes(models.adapter(stand_ins.OTHER).read_bytes())
    assert {"load0", "apply0", "sampler"} <= set(server.run(graph).executed)


@pytest.fixture
def best_of_two(models) -> dict:
    """Best of N without seeds and latents."""
    graph = text_to_image(models.folder, seed=33, batch_size=2)
    graph["reward"] = node("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0)
    graph["best"] = node(
        "HyperNoise_BestOfN", images=["decode", 0], reward=["reward", 0], prompt="a", keep=1
    )
    return graph


@pytest.mark.parametrize("name", ["latents", "seeds"])
def test_an_output_of_best_of_n_without_its_input_is_named_in_every_run(
    server: ComfyServer, best_of_two, name
):
    assert server.run(best_of_two).error is None  # it is an error only where it is used
    uses = {
        "latents": node("VAEDecode", samples=["best", 1], vae=["model", 2]),
        "seeds": node("HyperNoise_Seeds", seed=["best", 2], count=2),
    }
    graph = best_of_two | {"user": uses[name]}
    assert server.run(graph).error is None  # no node shows or saves what comes of it
    shown = "PreviewImage" if name == "latents" else "PreviewAny"
    slot = {"PreviewImage": "images", "PreviewAny": "source"}[shown]
    graph["shown"] = node(shown, **{slot: ["user", 0]})
    for _ in range(2):
        run = server.run(graph)
        assert run.error["node_id"] == "user"
        message = f"Best of N can output {name} only if its input {name} is connected"
        assert message in run.error["exception_message"]
    newest = json.loads(server.get("/history?max_items=1"))
    assert [run["status"]["status_str"] for run in newest.values()] == ["error"]
