"""`hypernoise evaluate`: how much of test-time optimisation's gain a hypernetwork recovers, at
which cost, and whether the distribution stays the same.

The folder holds report.html, report.json, report.md, and in cells/ the jobs done so far.
"""

from __future__ import annotations

from pathlib import Path

from ..evaluation.adapters import Adapters
from ..evaluation.eval_prompts import load_eval_prompts
from ..evaluation.layouts import write_layout
from ..evaluation.runner import Runner, prepare_parts
from ..evaluation.settings import EvaluationConfig
from ..evaluation.suite import Suite
from ..evaluation.suite_report import write_report
from ..processes import join
from ..writable import check_folder


def run(config: EvaluationConfig) -> None:
    """Evaluates, or writes the images of a layout, and prints the paths of what is written."""
    check_folder(config.out, "--out")
    if config.layout is not None:
        for folder in write_layout(config):
            print(folder.resolve())
    elif (page := evaluate(config)) is not None:
        for name in (page.name, "report.json", "report.md"):
            print((page.parent / name).resolve())


def evaluate(config: EvaluationConfig) -> Path | None:
    """Measures all methods and writes the report; returns the page, None in all but one process.

    All processes call this together; each does a share of the jobs.

    Raises:
        FileNotFoundError: a model, an adapter, a reward or a prompt file is missing.
        ValueError: the settings do not fit each other, or the folder holds another evaluation.
    """
    accelerator = join()
    adapters = Adapters.load(config)
    prompts = load_eval_prompts(config, accelerator)
    parts = prepare_parts(config, config.weights, prompts.texts())
    suite = Suite(Runner(config, parts, prompts, adapters.to(parts.accelerator.device)))
    suite.run()
    accelerator.wait_for_everyone()
    page = write_report(suite) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    return page
