"""The page behind the "i" of a node's toolbar, for each of our nodes."""

import json
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.browser.conftest import Canvas
from hypernoise.tests.comfyui.conftest import REPOSITORY

WORKFLOWS = REPOSITORY / "workflows"
PAGES = sorted(path.stem for path in (REPOSITORY / "web" / "docs").glob("*.md"))


def workflow_with(node: str) -> Path:
    """The first workflow on the embedded generator in which the node stands."""
    for path in sorted(WORKFLOWS.glob("sana_sprint_*.json")):
        if any(n["type"] == node for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]):
            return path
    raise AssertionError(f"no workflow shows {node}")


@pytest.mark.parametrize("node", PAGES)
def test_the_help_page_opens_with_its_picture(canvas: Canvas, node: str):
    canvas.drop(workflow_with(node))
    canvas.look_at(node)
    canvas.page.evaluate(
        "node => app.canvas.selectNode(app.graph._nodes.find(n => n.type === node))", node
    )
    canvas.page.get_by_test_id("info-button").first.dispatch_event("click")
    picture = canvas.page.locator(f"img[src$='/docs/images/{node}.jpg']")
    picture.wait_for()
    canvas.page.wait_for_function(
        "node => [...document.images].some("
        "image => image.src.endsWith(`/docs/images/${node}.jpg`) && image.naturalWidth > 0)",
        arg=node,
    )
