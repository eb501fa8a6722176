"""Model cards: facts of the adapter, and the tables of its evaluation."""

import importlib
import re
from dataclasses import replace

import pytest
import yaml

from hypernoise.hypernoise_core.adapter import load_adapter, save_adapter
from hypernoise.hypernoise_core.generator_lora import GeneratorLora, save_generator_lora
from hypernoise.training.commands.card import write_card
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.pipelines import load_pipeline


def front_matter(card: str) -> dict:
    _, facts, _ = card.split("---\n", 2)
    return yaml.safe_load(facts)


def test_a_card_without_a_report_names_the_generator_of_the_hub(tmp_path):
    hypernetwork = load_adapter(EMBEDDED_ADAPTER)
    hypernetwork.metadata = replace(hypernetwork.metadata, base_model="sana")
    path = save_adapter(hypernetwork, tmp_path / "adapter.safetensors")
    card = write_card(path, tmp_path / "README.md").read_text()
    facts = front_matter(card)
    assert facts["base_model"] == "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"
    assert "model-index" not in facts and "## Evaluation" not in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    compile(code, "card", "exec")
    for line in code.splitlines():
        if line.startswith("from hypernoise"):
            _, module, _, name = line.split()
            assert hasattr(importlib.import_module(module), name)


def test_a_card_of_a_lora_on_the_generator_says_so(tmp_path):
    network = load_pipeline("tiny-sprint", text_encoders=False).transformer
    path = save_generator_lora(
        GeneratorLora.initialise(network, "sana_sprint", rank=2, alpha=4),
        tmp_path / "lora.safetensors",
    )
    card = write_card(path, tmp_path / "README.md").read_text()
    assert "# SANA-Sprint reward LoRA" in card and "load_lora_weights" in card
    assert "hypernoise" not in front_matter(card)["tags"]


def test_a_file_that_is_no_report_is_named(tmp_path):
    (tmp_path / "report.json").write_text('{"methods": {}}')
    with pytest.raises(ValueError, match="steps is missing"):
        write_card(EMBEDDED_ADAPTER, tmp_path / "README.md", tmp_path / "report.json")
    with pytest.raises(FileNotFoundError, match="there is no report"):
        write_card(EMBEDDED_ADAPTER, tmp_path / "README.md", tmp_path / "gone.json")
    assert not (tmp_path / "README.md").exists()
