"""What people do first: drop a shared workflow on ComfyUI's page and press Run."""

import pytest

from hypernoise.tests.comfyui.browser.conftest import Canvas
from hypernoise.tests.comfyui.conftest import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
EMBEDDED = "sana_sprint_"  # graphs on the generator that comes along; others need real models
WIDGETS_OUT_OF_RANGE = """(n.widgets ?? [])
    .filter(w => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
    .map(w => `${n.type}.${w.name}: ${w.value}`)"""


def missing_nodes(canvas: Canvas) -> set[str]:
    """Types that ComfyUI does not know; it draws their nodes in red."""
    known = canvas.page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
    return set(canvas.nodes("n.type")) - set(known)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_dropped_workflow_opens_without_a_missing_node(canvas: Canvas, workflow):
    canvas.drop(workflow)
    canvas.screenshot(workflow.stem)
    assert missing_nodes(canvas) == set()
    assert canvas.problems == []


@pytest.mark.parametrize(
    "workflow",
    [path for path in WORKFLOWS if path.stem.startswith(EMBEDDED)],
    ids=lambda path: path.stem,
)
def test_a_dropped_workflow_runs_and_shows_its_images(canvas: Canvas, workflow):
    canvas.drop(workflow)
    assert [w for widgets in canvas.nodes(WIDGETS_OUT_OF_RANGE) for w in widgets] == []
    canvas.press_run()
    canvas.screenshot(workflow.stem)
    assert not any(canvas.nodes("Boolean(n.has_errors)"))
    assert canvas.problems == []


def test_the_help_panel_shows_our_page(canvas: Canvas):
    """What the "i" in a node's toolbar opens."""
    canvas.drop(REPOSITORY / "workflows" / "sana_sprint_text_to_image.json")
    canvas.page.evaluate(
        "() => app.canvas.selectNode(app.graph._nodes.find(n => n.type === 'HyperNoise_Apply'))"
    )
    canvas.page.get_by_test_id("info-button").first.click()
    canvas.page.get_by_text("Just before sampling starts, it runs").wait_for()
    canvas.screenshot("help")
