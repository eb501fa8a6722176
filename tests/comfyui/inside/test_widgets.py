"""Values that reach a node over a link: ComfyUI hands them on without a look at the widget."""

from collections.abc import Iterator

import pytest
import torch

from hypernoise.tests.comfyui.stand_ins import FILE


def widgets_of(node) -> Iterator:
    """Its inputs that have a widget, or none but could."""
    from comfy_api.latest import io

    kinds = (io.Combo.Input, io.Int.Input, io.Float.Input, io.Boolean.Input, io.String.Input)
    return (entry for entry in node.define_schema().inputs if isinstance(entry, kinds))


def bad_values(widget) -> list[object]:
    """None is what a node gets whose source gave nothing."""
    from comfy_api.latest import io

    if isinstance(widget, io.Combo.Input):
        return [None, "nothing of the kind", 7, ["a"], torch.zeros(2)]
    if isinstance(widget, io.Boolean.Input):
        return [None, "false", 2, torch.zeros(2)]
    if isinstance(widget, io.String.Input):
        return [None, 7]
    bad = [None, "1", float("nan"), float("inf"), torch.zeros(2)]
    bad += [widget.min - 1, widget.max + 1] if widget.max is not None else []
    return [*bad, 1.5] if isinstance(widget, io.Int.Input) else bad


@pytest.fixture(scope="module")
def inputs(comfy, loaded) -> dict[str, object]:
    """What the nodes' other inputs get, by name."""
    from comfy_extras.nodes_custom_sampler import RandomNoise

    with torch.inference_mode():
        reward = comfy.run("HyperNoise_LoadReward", reward="Redness (redness)", weight=1.0)[0]
    images = torch.full((2, 64, 64, 3), 0.5)
    noise = RandomNoise.execute(5).args[0]
    return {
        "model": loaded.model, "vae": loaded.vae, "latent": loaded.latent, "noise": noise,
        "positive": loaded.prompt, "hypernoise": loaded.hypernoise, "reward": reward,
        "images": images, "first": images, "second": images, "hypernetwork": FILE,
        "prompt": "a", "seeds": 7,
    }  # fmt: skip


def test_a_bad_value_is_refused_with_the_widget_s_name_and_what_it_takes(comfy, inputs):
    tried = 0
    for node in comfy.ours("nodes").NODES:
        schema = node.define_schema()
        good = {widget.id: widget.default for widget in widgets_of(node)}
        good |= {e.id: inputs[e.id] for e in schema.inputs if inputs.get(e.id) is not None}
        for widget in widgets_of(node):
            if widget.id in ("reward", "folder", "precision"):
                good[widget.id] = widget.options[0]
        for widget in widgets_of(node):
            for bad in bad_values(widget):
                values = good | {widget.id: bad}
                if schema.is_input_list:
                    values = {name: [value] for name, value in values.items()}
                with pytest.raises(ValueError) as error:
                    node.execute(**values)
                message = str(error.value)
                assert f"{widget.id} is " in message or f"{widget.id} {bad!r:.20}" in message
                for choice in getattr(widget, "options", [])[:1]:
                    assert choice in message
                tried += 1
    assert tried > 150


def test_values_that_fit_pass(comfy):
    """Also whole numbers and booleans of other libraries, which links carry."""
    import numpy as np

    check = comfy.ours("nodes.widgets").check
    nodes = {node.define_schema().node_id: node for node in comfy.ours("nodes").NODES}
    check(nodes["HyperNoise_BestOfN"], keep=np.int64(3), seeds=-1, one_prompt_per_line=1)
    check(nodes["HyperNoise_Apply"], strength=np.float32(0.5))
    check(nodes["HyperNoise_Apply"], strength=2, out_of_memory="stop")


@pytest.mark.parametrize(
    ("node", "widget", "place"),
    [
        ("HyperNoise_LoadHypernetwork", "hypernetwork", "hypernoise"),
        ("HyperNoise_LoadSanaSprint", "folder", "sana_sprint"),
    ],
)
def test_behind_a_linked_name_every_file_counts(comfy, models, node, widget, place, tmp_path):
    """The name is not known before the run: the node runs again when any of them was replaced."""
    import shutil

    folder = models.base / "models" / place / "linked"
    shutil.copytree(models.folder_path, folder)
    try:
        (folder / "x.safetensors").write_text("1")
        of = comfy.nodes.NODE_CLASS_MAPPINGS[node].fingerprint_inputs
        before = of(**{widget: None})
        assert before and of(**{widget: None}) == before
        (folder / "x.safetensors").write_text("22")
        assert of(**{widget: None}) != before
    finally:
        shutil.rmtree(folder)
