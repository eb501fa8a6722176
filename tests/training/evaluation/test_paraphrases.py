"""Paraphrases, by rule and from a command of the user."""

from dataclasses import replace

import pytest

from hypernoise.tests.training.evaluation.runs import answering
from hypernoise.training.evaluation import paraphrases
from hypernoise.training.evaluation.eval_prompts import load_eval_prompts
from hypernoise.training.evaluation.settings import EvaluationConfig
from hypernoise.training.processes import join


def test_a_caption_is_paraphrased_under_every_prefix():
    assert paraphrases.paraphrase("a photo of two red circles") == [
        "a photo of two red circles",
        "two red circles",
        "a picture of two red circles",
        "a drawing of two red circles",
    ]
    with pytest.raises(ValueError, match="not a caption"):
        paraphrases.paraphrase("a cat")


def test_a_command_answers_paraphrases_line_by_line(tmp_path):
    body = """for line in lines:
    text = line["prompt"]
    print(json.dumps({"candidates": [text, text + ", sharp", "  déjà vu  "]}))"""
    answer = paraphrases.ask_command(answering(tmp_path, body), ["a cat", "ein Bär"])
    assert answer == {
        "a cat": ["a cat", "a cat, sharp", "déjà vu"],
        "ein Bär": ["ein Bär", "ein Bär, sharp", "déjà vu"],
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('{\"candidates\": []}')", "1 lines for 2 prompts"),
        ("print('yes')\nprint('no')", "line 1 of the output"),
        ("print('{\"candidates\": [1]}')\nprint('{\"candidates\": []}')", "line 1 of the output"),
        ('print(\'{"candidates": []}\')\nprint(\'{"candidates": [" "]}\')', "line 2 of the output"),
        ("sys.exit(3)", "exited with code 3"),
    ],
)
def test_a_command_that_answers_otherwise_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        paraphrases.ask_command(answering(tmp_path, body), ["a cat", "a dog"])


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no-such-command"):
        paraphrases.ask_command("no-such-command --x", ["a cat"])


def test_paraphrases_are_asked_for_again_where_another_command_gives_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    config = EvaluationConfig(
        task=str(tmp_path / "prompts.txt"),
        methods=("prompt_optimisation",),
        out=tmp_path / "out",
    )
    for text in ("a lion", "a tiger"):
        body = f"print(json.dumps({{'candidates': ['{text}']}}))"
        (folder := tmp_path / text).mkdir()
        command = answering(folder, body).replace(text, f"'{text}'")
        prompts = load_eval_prompts(replace(config, prompt_command=command), join())
        assert prompts.paraphrases.by_prompt == {"a cat": ["a cat", text]}
