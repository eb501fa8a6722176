"""ComfyUI's own page in a headless Chromium."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypernoise.tests.comfyui.server import ComfyServer

SCREENSHOTS = "HYPERNOISE_SCREENSHOTS"  # a folder to keep the pictures in
WIDTH, HEIGHT = 1800, 1000

# ComfyUI's veil over the page fades out and is then removed; when the next one comes before that,
# on a slow machine, the first is forgotten and no click reaches the page any more.
NO_FADING = """
    const style = new CSSStyleSheet()
    style.replaceSync(".p-blockui-mask { animation: none !important }")
    document.adoptedStyleSheets = [style]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test below this folder needs a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Canvas:
    """The page with ComfyUI's graph editor; what a person does with a mouse, as methods."""

    page: object
    server: ComfyServer
    problems: list[str]

    def drop(self, workflow: Path) -> None:
        """Drop a workflow file on the canvas and wait until its nodes are there."""
        text = workflow.read_text(encoding="utf-8")
        data = self.page.evaluate_handle(
            """([text, name]) => {
                const data = new DataTransfer()
                data.items.add(new File([text], name, {type: "application/json"}))
                return data
            }""",
            [text, workflow.name],
        )
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": data})
        self.page.wait_for_function(
            "types => JSON.stringify(app.graph._nodes.map(n => n.type).sort()) === types",
            arg=json.dumps(
                sorted(node["type"] for node in json.loads(text)["nodes"]), separators=(",", ":")
            ),
        )
        self.page.locator("#graph-canvas").focus()
        self.page.keyboard.press(".")  # fit the graph into the view

    def press_run(self) -> None:
        """Press Run and wait until every Save Image node shows its images."""
        self.page.get_by_test_id("queue-button").click()
        self.page.wait_for_function(
            """() => app.graph._nodes.filter(n => n.type === "SaveImage").every(
                n => n.imgs?.length && n.imgs.every(image => image.naturalWidth > 0))""",
            timeout=180_000,
        )

    def nodes(self, expression: str) -> list:
        """A JavaScript expression in `n` for each node of the graph."""
        return self.page.evaluate(f"() => app.graph._nodes.map(n => {expression})")

    def look_at(self, node: str) -> None:
        """Move the view to the first node of that type; keeps a picture of it as `screenshot`."""
        self.page.wait_for_timeout(1500)  # until the view has come to rest on the whole graph
        x, y, width, height = self.page.evaluate(
            """node => {
                const n = app.graph._nodes.find(n => n.type === node), {ds} = app.canvas
                ds.scale = 1
                ds.offset = [500 - n.pos[0], 250 - n.pos[1]]
                app.canvas.setDirty(true, true)
                const canvas = document.querySelector("#graph-canvas").getBoundingClientRect()
                return [canvas.x + 500, canvas.y + 250, ...n.size]
            }""",
            node,
        )
        self.page.wait_for_timeout(1000)  # until it is drawn
        if folder := os.environ.get(SCREENSHOTS):
            clip = {"x": x - 90, "y": y - 60, "width": width + 180, "height": height + 90}
            path = Path(folder) / f"{node}.jpg"
            self.page.screenshot(path=path, type="jpeg", quality=85, clip=clip)

    def screenshot(self, name: str) -> None:
        """Kept where HYPERNOISE_SCREENSHOTS says; nothing without it."""
        if folder := os.environ.get(SCREENSHOTS):
            self.page.wait_for_timeout(4000)  # until the messages in the corner are gone
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
def canvas(browser, server: ComfyServer) -> Iterator[Canvas]:
    """A fresh page, past the greeting for newcomers."""
    server.post("/settings/Comfy.TutorialCompleted", True)
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    problems: list[str] = []
    page.add_init_script(NO_FADING)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("[data-testid=queue-button]", timeout=180_000)
    page.wait_for_function("() => window.app?.graph && window.app?.canvas")
    yield Canvas(page, server, problems)
    page.close()
