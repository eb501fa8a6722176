"""report.html of a run: one page for whatever the run has written, whole or not."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.training.report.figures import (
    GainPoint,
    curves,
    side_by_side,
    training_curves,
    two_gains,
)
from hypernoise.training.tracking import MetricsLog
from hypernoise.training.validation import run_report
from hypernoise.training.validation.held_out import FOLDER, Evaluation, paired_gain
from hypernoise.training.validation.run_report import write_run_report


def evaluation(gain: float, watched: float, count: int = 12) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(count, generator=generator)
    jitter = 0.1 * torch.randn(count, generator=generator)
    return Evaluation(
        gains={
            "evaluation/hps": paired_gain(base, base + gain + jitter),
            "evaluation/total": paired_gain(base, base + gain + jitter),
            "watched/clip": paired_gain(base, base + watched + jitter),
        },
        f_squared=0.25,
        noise_prompt_replaced=1.5,
        prompts=["a <b>", "$c$"],
        rows={"base": torch.rand(2, 3, 32, 32), "modulated noise": torch.rand(2, 3, 32, 32)},
        noise_rows={},
    )


def write_evaluation(folder: Path, log: MetricsLog, step: int, result: Evaluation) -> None:
    log.write(step, result.metrics(), kind="evaluation")
    result.write_pictures(folder / FOLDER, step)


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path, "none", {})


def page_of(folder: Path, summary: list[str] | None = None) -> str:
    path = write_run_report(folder, "A <run> & more", summary or ["What was <trained>."])
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def pictures(page: str) -> list[str]:
    return re.findall(r'<img alt="([^"]*)" src="data:image/(?:png|jpeg);base64,', page)


def test_a_run_s_page_holds_curves_table_pictures_and_warning_and_needs_no_network(log, tmp_path):
    for step in range(1, 41):
        log.write(step, {"loss": -step, "hps": step / 10, "images": 8, "seconds": step * 0.5})
        if step in (10, 20, 40):
            result = evaluation(step / 10, {10: 0.0, 20: 0.3, 40: -1.0}[step])
            write_evaluation(tmp_path, log, step, result)
    page = page_of(tmp_path)
    assert "://" not in page
    assert "A &lt;run&gt; &amp; more" in page
    assert "What was &lt;trained&gt;." in page
    assert page.count('class="warning"') == 1
    assert "stop at step 20, where clip was best" in page
    assert "<td>total</td>" in page
    assert "<td>clip (not trained on)</td>" in page
    assert "0.25" in page
    total = result.gains["evaluation/total"]
    assert f"<td>{total.low:+.4g} to {total.high:+.4g}</td>" in page
    assert pictures(page) == [
        "Gain over the base: total (trained on) and clip (not trained on)",
        "Gain over the base on held-out prompts, with 95% confidence",
        "Same prompt, same noise: after 40 updates",
        "Same prompt, same noise: after 10 updates",
        "Training",
    ]


def test_a_run_that_goes_well_has_no_warning(log, tmp_path):
    write_evaluation(tmp_path, log, 10, evaluation(1.0, 0.5))
    page = page_of(tmp_path)
    assert 'class="warning"' not in page
    assert "Same prompt, same noise: after 10 updates" in page
    assert page.count("Same prompt, same noise: after") == 2  # the heading and the picture's text


def test_a_run_without_evaluation_has_a_page(log, tmp_path):
    log.write(1, {"loss": 1.0})
    assert pictures(page_of(tmp_path)) == ["Training"]


def test_a_run_that_has_written_nothing_yet_has_a_page(log, tmp_path):
    assert pictures(page_of(tmp_path)) == []


def test_what_is_no_number_is_left_out_of_the_curves(log, tmp_path):
    for step, loss in enumerate([1.0, math.nan, math.inf, 0.5, math.nan]):
        log.write(step, {"loss": loss, "hps": math.nan})
    write_evaluation(tmp_path, log, 4, evaluation(math.nan, math.nan))
    write_evaluation(tmp_path, log, 5, evaluation(1.0, 1.0, count=1))
    page = page_of(tmp_path)
    assert "nan" in page
    assert len(pictures(page)) == 5


def test_pictures_of_steps_that_were_done_again_are_not_shown(log, tmp_path):
    write_evaluation(tmp_path, log, 10, evaluation(1.0, 0.5))
    write_evaluation(tmp_path, log, 20, evaluation(1.0, 0.5))
    log.rewind(10)
    assert "after 20 updates" not in page_of(tmp_path)


def test_a_measure_that_is_watched_from_the_middle_on_is_drawn_from_there(log, tmp_path):
    result = evaluation(1.0, 0.5).metrics()
    unwatched = {name: value for name, value in result.items() if "watched" not in name}
    log.write(10, unwatched, kind="evaluation")
    log.write(20, result, kind="evaluation")
    assert "<td>clip (not trained on)</td>" in page_of(tmp_path)


def test_no_record_is_an_error_and_leaves_no_page(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_run_report(tmp_path, "t", [])
    assert list(tmp_path.iterdir()) == []


def test_curves_and_grids_are_written_in_the_format_of_their_name(tmp_path):
    training_curves(tmp_path / "a.png", {"reward": [1.0, 2.0], "mean |f|²": [0.1, math.nan]})
    rows = {"base": torch.rand(1, 3, 8, 8)}
    for name in ("b.png", "b.jpg"):
        side_by_side(tmp_path / name, ["p"], rows)
    formats = []
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as picture:
            formats.append(picture.format)
    assert formats == ["PNG", "JPEG", "PNG"]


def test_the_speed_is_that_of_all_updates_between_two_lines():
    rows = [{"step": step, "images": 8, "seconds": seconds} for step, seconds in ((1, 1), (5, 3))]
    assert run_report._speed(rows) == {5: 16.0}  # four updates of eight images in two seconds


def test_a_curve_of_equal_values_has_a_level_smooth_line():
    raw, smooth = curves({"loss": dict.fromkeys(range(5), 2.0)}).axes[0].lines
    assert list(raw.get_ydata()) == pytest.approx(list(smooth.get_ydata())) == [2.0] * 5


def test_two_gains_in_one_picture_have_their_base_at_the_same_height():
    first = [GainPoint(1, 2.0, 1.0, 3.0), GainPoint(2, 4.0, 3.0, 5.0)]
    second = [GainPoint(1, -0.1, -0.2, 0.0), GainPoint(2, 0.1, 0.0, 0.2)]
    heights = []
    for axis in two_gains(("total", first), ("clip", second)).axes:
        low, high = axis.get_ylim()
        heights.append(-low / (high - low))
    assert 0 < heights[0] < 1 and heights[0] == pytest.approx(heights[1])


@pytest.mark.parametrize(("right", "frame"), [(True, "green"), (False, "red")])
def test_the_frame_says_whether_the_checker_agrees(right, frame, tmp_path):
    side_by_side(tmp_path / "a.png", ["p"], {"base": torch.ones(1, 3, 8, 8)}, {"base": [right]})
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red, green = pixels[..., 0], pixels[..., 1]
    seen = {"red": (red > green + 90).any(), "green": (green > red + 90).any()}
    assert [name for name, there in seen.items() if there] == [frame]


def test_the_estimate_of_the_kl_has_its_curves(log, tmp_path):
    for step in (10, 20):
        kl = {"kl/l2": step, "kl/total": 2 * step, "kl/remainder_share": 0.5, "kl/lipschitz": 1.5}
        log.write(step, evaluation(1.0, 0.0).metrics() | kl, kind="evaluation")
    with_kl = page_of(tmp_path)
    assert "How far the noise&#39;s distribution has moved" in pictures(with_kl)
    log.rewind(0)
    log.write(10, evaluation(1.0, 0.0).metrics(), kind="evaluation")
    assert len(pictures(page_of(tmp_path))) == len(pictures(with_kl)) - 1
