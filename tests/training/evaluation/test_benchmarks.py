"""The prompts of benchmarks, from the files of their checkouts."""

import pytest

from hypernoise.training.evaluation import layouts
from hypernoise.training.evaluation.benchmarks.geneval import geneval_items
from hypernoise.training.evaluation.benchmarks.t2i_compbench import t2i_compbench_items


def test_geneval_s_lines_end_where_lines_end(tmp_path):
    file = tmp_path / "prompts" / "evaluation_metadata.jsonl"
    file.parent.mkdir()
    file.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}\r\n'.encode())
    items = geneval_items(tmp_path, 1)
    assert [item.prompt for item in items] == ["a\u2028b", "c"]
    assert items[0].texts == {"00000/metadata.jsonl": '{"prompt": "a\u2028b"}\n'}
    for text, message in (
        ('{"prompt": "a"}\n{"prompt": " \u200b"}\n', "line 2: the prompt is empty"),
        ('{"prompt": "a"}\n{"tag": "b"}\n', "line 2: expected an object"),
        ('{"prompt": "a"}\n["b"]\n', "line 2: expected an object"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            geneval_items(tmp_path, 1)


def test_a_checkout_without_prompts_is_named(checkouts, tmp_path):
    for name, layout in layouts.LAYOUTS.items():
        with pytest.raises(FileNotFoundError, match="looked for"):
            layout(tmp_path / name, 4)
    with pytest.raises(ValueError, match="part of a file name"):
        file = tmp_path / "examples" / "dataset" / "color_val.txt"
        file.parent.mkdir(parents=True)
        file.write_text("a red/green circle\n")
        t2i_compbench_items(tmp_path, 4)
