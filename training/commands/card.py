"""`hypernoise card`: a model card for an adapter, from its metadata and its evaluation."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from ...hypernoise_core.adapter import find_weights, open_adapter
from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.families import get_family
from ...hypernoise_core.generator_lora import GeneratorLora
from ...hypernoise_core.metadata import AdapterMetadata
from ...hypernoise_core.text import printable
from ..evaluation.method_table import BASE, OURS
from ..evaluation.report_file import read_report_file
from ..evaluation.results import Report
from ..evaluation.tables import markdown
from ..published_models import PUBLISHED
from ..writable import check_file
from .settings import CardConfig

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKUP = re.compile(r"[\\`*_\[\]|!~$#]")


def run(config: CardConfig) -> None:
    """Writes the card and prints its path."""
    check_file(config.out, "--out", replace=config.force)
    print(write_card(config.adapter, config.out, config.report).resolve())


def write_card(adapter: Path, out: Path, report: Path | None = None) -> Path:
    """Writes a model card as the Hugging Face hub expects it: YAML front matter, then Markdown.

    Args:
        adapter: a noise hypernetwork, or a LoRA trained on the generator itself.
        out: path of the card; the hub shows README.md.
        report: report.json of an evaluation.

    Returns:
        The path of the card.

    Raises:
        AdapterError: the adapter is missing or damaged.
        FileNotFoundError: there is no such report.
        ValueError: the report was not written by `hypernoise evaluate`; names the key.
    """
    loaded = open_adapter(adapter)
    is_lora, facts = isinstance(loaded, GeneratorLora), loaded.metadata
    results = None if report is None else read_report_file(report)
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    sections = [
        _front_matter(facts, is_lora, results, out.resolve().parent.name),
        f"# {_text(_title(facts, is_lora))}",
        _what_it_is(is_lora, facts),
        _table_of_facts(facts, parameters),
        _how_to_use(find_weights(adapter).name, is_lora, facts),
    ]
    if results is not None:
        sections.append(_evaluation(results))
    write_atomically(out, ("\n\n".join(sections) + "\n").encode())
    return out


def _title(facts: AdapterMetadata, is_lora: bool) -> str:
    kind = "reward LoRA" if is_lora else "noise hypernetwork"
    return f"{get_family(facts.family).title} {kind}"


def _repository(facts: AdapterMetadata) -> str | None:
    """The generator's repository on the hub; None if unknown."""
    name = facts.base_model or ""
    if name in PUBLISHED:
        return PUBLISHED[name].repository
    return name if _REPOSITORY.fullmatch(name) and not Path(name).exists() else None


def _text(text: object) -> str:
    """Text from a file, escaped so that Markdown shows it literally, on one line."""
    line = " ".join(printable(str(text)).split())
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", line)
    return html.escape(escaped, quote=False)


# JSON is valid YAML, so values are written as JSON.


def _front_matter(facts: AdapterMetadata, is_lora: bool, report: Report | None, name: str) -> str:
    kind = [] if is_lora else ["hypernoise", "noise-hypernetwork"]
    entries: dict[str, Any] = {
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "lora", *kind],
    }
    if is_lora:
        entries["library_name"] = "diffusers"
    if (repository := _repository(facts)) is not None:
        entries |= {"base_model": repository, "base_model_relation": "adapter"}
    if report is not None and OURS in report.first_table and not is_lora:
        entries["model-index"] = [_model_index(report, name)]
    lines = [
        f"{key}: {printable(json.dumps(value, ensure_ascii=False))}"
        for key, value in entries.items()
    ]
    return "\n".join(["---", *lines, "---"])


def _model_index(report: Report, name: str) -> dict[str, Any]:
    """The results in the hub's model-index format."""
    steps, ours = report.fewest_steps, report.first_table[OURS]
    values = {f"mean reward, {steps} step(s)": ours.reward_mean, "win rate": ours.win_rate}
    if ours.checker_mean is not None:
        values[f"checker mean, {steps} step(s)"] = ours.checker_mean
    metrics = [
        {"type": title.split(",")[0].replace(" ", "_"), "name": title, "value": round(value, 4)}
        for title, value in values.items()
    ]
    prompts = {"name": f"{report.settings.prompts} prompts", "type": "prompts"}
    result = {
        "task": {"type": "text-to-image"},
        "dataset": prompts,
        "metrics": metrics,
    }
    return {"name": name, "results": [result]}


def _what_it_is(is_lora: bool, facts: AdapterMetadata) -> str:
    rewards = ", ".join(map(_text, facts.rewards)) or "rewards that its metadata does not name"
    if is_lora:
        return (
            f"A LoRA on the generator itself, trained on {rewards}. It is a baseline for noise "
            f"hypernetworks: it may raise its rewards at the cost of quality and diversity."
        )
    return (
        "A noise hypernetwork ([arXiv 2508.09968](https://arxiv.org/abs/2508.09968)): LoRA weights "
        "that turn the frozen generator into a network f that changes the initial noise to x + "
        "f(x, prompt). The generator itself is unchanged and makes the image from that noise, in "
        f"one or more steps. The cost is one extra pass of the network. Trained on {rewards}.\n\n"
        "It is not a LoRA for the generator: loading it as one gives broken images."
    )


def _table_of_facts(facts: AdapterMetadata, parameters: int) -> str:
    rewards = ", ".join(f"{weight:g} x {name}" for name, weight in facts.rewards.items())
    rows = {
        "generator": facts.base_model,
        "family": get_family(facts.family).title,
        "rank, alpha": f"{facts.rank}, {facts.alpha:g}",
        "parameters": f"{parameters:,}",
        "rewards": rewards or None,
        "updates": facts.training_steps,
    }
    lines = [f"| {name} | {_text(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _how_to_use(file: str, is_lora: bool, facts: AdapterMetadata) -> str:
    pipeline = get_family(facts.family).pipeline_class
    source = _repository(facts) or "GENERATOR"
    load = f'pipeline = {pipeline}.from_pretrained("{source}")'
    if is_lora:
        code = [
            f"from diffusers import {pipeline}",
            "",
            load,
            f"pipeline.load_lora_weights({_literal(file)})",
        ]
        return "\n".join(["## Use", "", "```python", *code, "```"])
    code = [
        f"from diffusers import {pipeline}",
        "from hypernoise.hypernoise_core.adapter import load_adapter",
        "from hypernoise.hypernoise_core.generate import generate",
        "",
        load,
        f"hypernetwork = load_adapter({_literal(file)})",
        'images = generate(pipeline, ["a photo of a cat"], hypernetwork, seeds=[0]).images',
    ]
    comfyui = (
        "In ComfyUI with the HyperNoise nodes: put the file in `models/hypernoise`, load it with "
        "*Load Noise Hypernetwork*, and connect it to *Apply Noise Hypernetwork*."
    )
    return "\n".join(["## Use", "", comfyui, "", "In Python:", "", "```python", *code, "```"])


def _literal(text: str) -> str:
    """The text as a Python string literal."""
    return json.dumps(printable(text), ensure_ascii=False)


def _evaluation(report: Report) -> str:
    settings = report.settings
    rewards = ", ".join(f"{weight:g} x {_text(name)}" for name, weight in settings.rewards.items())
    text = [
        f"{settings.prompts} prompts with {settings.seeds} noises each, the same for all methods. "
        f"Reward: {rewards}. Intervals: 95% bootstrap over prompts. Passes count images through "
        f"the network; seconds were measured on one machine ({_text(settings.device)})."
    ]
    if (share := report.recovered_share) is not None and share.reward is not None:
        text.append(f"It recovers {share.reward:.0%} of ReNO's gain in reward.")
    table = report.first_table
    before = table[BASE].pixel_diversity
    after = table[OURS].pixel_diversity if OURS in table else None
    if before is not None and after is not None:
        text.append(
            f"Two images of the same prompt differ by {after:.3f} on average, compared with "
            f"{before:.3f} without the hypernetwork (root mean square over downscaled copies with "
            f"values from 0 to 1)."
        )
    tables = html.escape(printable(markdown(report)), quote=False).rstrip()
    return "\n\n".join(["## Evaluation", " ".join(text), tables])
