"""Tests run on the CPU, where what they expect was recorded; `make gpu` runs those for a GPU."""

import os
import shutil
from collections.abc import Iterator

import pytest

from hypernoise.tests.trust.tallies import (
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

GPU = "HYPERNOISE_GPU"  # set: tests see the GPU, and those of gpu/ are collected

# Before torch looks; for processes that tests start too.
if not os.environ.get(GPU):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# On a busy machine threads that wait for each other make a step of a small network 40 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = [] if os.environ.get(GPU) else ["gpu"]

CHROMIUM = "HYPERNOISE_CHROMIUM"  # path of a Chromium, for machines where it has another name
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get(CHROMIUM) or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A headless Chromium; Playwright allows one in a process."""
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium found: install one or set {CHROMIUM} to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()
