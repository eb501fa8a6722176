"""Settings of an evaluation, and the methods that follow from them."""

import re
from pathlib import Path

import pytest

from hypernoise.training.evaluation import method_table
from hypernoise.training.evaluation.settings import EvaluationConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("magic",)}, "unknown method 'magic', choose from base"),
        ({"methods": ("finetune",)}, "give --lora"),
        ({"model": "sana"}, "--adapter FILE"),
        ({"model": "sana", "methods": ("hypernoise",)}, "--adapter FILE"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": (0,)}, "steps must be at least 1"),
        ({"ablation": ("rank_8",)}, "NAME=FILE"),
        ({"ablation": ("a/b=c",)}, "NAME=FILE"),
        ({"layout": "geneval"}, "--data_dir"),
        ({"kl_noises": -1}, "kl_noises"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"rewards": "redness=0"}, "the weight of redness"),
        ({"rewards": "beauty"}, "beauty"),
    ],
)
def test_settings_that_cannot_run_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluationConfig(**settings)


def test_default_methods_are_those_that_can_run():
    assert EvaluationConfig().chosen_methods(paraphrases=True) == tuple(
        name for name in method_table.METHODS if name != "finetune"
    )
    assert "prompt_optimisation" not in EvaluationConfig().chosen_methods(paraphrases=False)
    config = EvaluationConfig(methods=("prompt_optimisation",))
    with pytest.raises(ValueError, match="--prompt_command"):
        config.chosen_methods(paraphrases=False)
    layout = EvaluationConfig(layout="geneval", data_dir=Path("x"))
    assert layout.chosen_methods(paraphrases=True) == ("base", "hypernoise")
