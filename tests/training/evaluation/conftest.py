"""What tests of the evaluation share."""

import json
import shutil
from pathlib import Path

import pytest

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.generate import encode_prompts
from hypernoise.hypernoise_core.generator_lora import save_generator_lora
from hypernoise.hypernoise_core.rewards import load_rewards
from hypernoise.tests.training.evaluation.runs import (
    PROMPTS,
    SMALL_RUN,
    ablation_of,
    as_flags,
    new_lora,
)
from hypernoise.tests.warm import hypernoise as run
from hypernoise.training.embedded_models import ASSETS, EMBEDDED_ADAPTER
from hypernoise.training.evaluation import methods
from hypernoise.training.pipelines import load_pipeline


@pytest.fixture(scope="session")
def task() -> methods.Task:
    pipeline = load_pipeline("tiny-sprint")
    return methods.Task(
        pipeline=pipeline,
        rewards=load_rewards({"tiny-preference": 1.0, "redness": 0.5}),
        prompts=PROMPTS,
        conditioning=encode_prompts(pipeline, PROMPTS),
        seeds=[5, 6, 7],
        size=(64, 64),
        batch_size=2,
    )


@pytest.fixture(scope="session")
def hypernetwork():
    return load_adapter(EMBEDDED_ADAPTER)


@pytest.fixture(scope="session")
def evaluated(task, tmp_path_factory) -> Path:
    """All methods on 8 captions, as people run it."""
    folder = tmp_path_factory.mktemp("evaluation")
    lora = save_generator_lora(new_lora(task, 0.1), folder / "lora.safetensors")
    files = {"lora": lora, "ablation": ablation_of(folder), "cache_dir": folder / "cache"}
    result = run("evaluate", *as_flags(SMALL_RUN | files | {"out": folder / "out"}))
    assert result.returncode == 0, result.stderr
    assert str(folder / "out" / "report.html") in result.stdout
    return folder


@pytest.fixture(scope="session")
def checkouts(tmp_path_factory) -> dict[str, Path]:
    """Made-up prompts in the files of each benchmark."""
    root = tmp_path_factory.mktemp("checkouts")
    lines = [
        {"tag": "single_object", "include": [{"class": "circle"}], "prompt": "a red circle"},
        {"tag": "counting", "include": [{"class": "square", "count": 2}], "prompt": PROMPTS[1]},
        {"tag": "position", "prompt": PROMPTS[2]},
    ]
    texts = {
        "geneval/prompts/evaluation_metadata.jsonl": "".join(json.dumps(x) + "\n" for x in lines),
        "T2I-CompBench/examples/dataset/color_val.txt": "a red circle\ntwo blue squares\tseen\n",
        "T2I-CompBench/examples/dataset/shape_val.txt": "a circle\n",
        "T2I-CompBench/examples/dataset/shape_train.txt": "a square\n",
        "dpg_bench/prompts/12.txt": "a red circle",
        "dpg_bench/prompts/COCOval_3.txt": "two blue squares\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {
        "geneval": root / "geneval",  # the checkout itself
        "t2i-compbench": root,  # the folder around it
        "dpg-bench": root / "dpg_bench",
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of tiny-sprint."""
    return Path(shutil.copytree(ASSETS / "tiny-sprint", tmp_path / "model"))
