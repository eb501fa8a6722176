"""Pages, cards and tables that show what strangers wrote: nothing of it is run or fetched."""

import ast
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hypernoise.hypernoise_core.errors import AdapterError
from hypernoise.hypernoise_core.text import printable
from hypernoise.tests.trust.generated import examples
from hypernoise.training.commands import demo
from hypernoise.training.commands.card import write_card
from hypernoise.training.embedded_models import EMBEDDED_ADAPTER
from hypernoise.training.report import figures
from hypernoise.training.report import page as report
from hypernoise.training.report.figures import GainPoint, Point
from hypernoise.training.tracking import MetricsLog
from hypernoise.training.validation.run_report import write_run_report

RUN = "window.pwned=1;fetch('http://127.0.0.1:9/leak')"
HOSTILE = [
    f"<script>{RUN}</script>", f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>", f"</h2><img src=x onerror={RUN}>", f'" onerror="{RUN}',
    f"' onload='{RUN}", f'"><svg onload={RUN}>', f"--><script>{RUN}</script>",
    f"<!--<script>{RUN}", "<![CDATA[<script>", f"javascript:{RUN}",
    f"<a href=javascript:{RUN}>a</a>", f"<iframe srcdoc='<script>{RUN}'>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x>",
    "<meta http-equiv=refresh content='0;url=x'>", "<base href=http://127.0.0.1:9/>",
    "<style>@import 'http://127.0.0.1:9/x'</style>", "<img src=http://127.0.0.1:9/x.png>",
    "<object data=http://127.0.0.1:9/x>", "&lt;script&gt;", "&#60;script&#62;", "\x00<script>",
    "<scr\x00ipt>", "\ud800<script>", "\u2028<script>", "\u202e", "a\nb\r\nc", "a | b", "`code`",
    "```\n# title", "---\nevil: true", "{{7*7}} ${7*7}", "\\", "'\"", "=cmd|' /C calc'!A0",
    "[a](javascript:alert(1))", "![a](http://127.0.0.1:9/x.png)", "# heading",
    "*bold* _it_ ~~x~~ <b>", "$\\frac{a}{b}$", "$\\foo$", "é👍שלום", "x" * 5000, "\x1b[31m", "",
]  # fmt: skip
PNG = figures.as_png(figures.curves({"a": {1: 1.0}}))


@pytest.fixture
def visit(browser) -> Iterator[Callable[[Path], Any]]:
    """Opens a page, makes sure that it did nothing by itself, and gives it."""
    pages = []

    def open_page(path: Path) -> Any:
        page = browser.new_page()
        pages.append(page)
        requests, problems, said = [], [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        page.wait_for_timeout(200)
        for image in page.query_selector_all("img"):
            image.hover(timeout=5000)
        assert page.evaluate("() => window.pwned") is None
        outside = [url for url in requests if url != path.as_uri() and url[:5] != "data:"]
        assert not outside and not problems and not said
        tags = page.evaluate("() => [...document.querySelectorAll('*')].map(e => e.tagName)")
        assert not set(tags) & {"SCRIPT", "IFRAME", "SVG", "OBJECT", "LINK", "BASE", "A", "FORM"}
        assert page.evaluate("""() => [...document.querySelectorAll('*')].every(
            e => [...e.attributes].every(a => !a.name.startsWith('on')))""")
        return page

    yield open_page
    for page in pages:
        page.close()


def as_shown(text: str) -> str:
    return " ".join(printable(text).split())


@pytest.mark.browser
def test_a_page_shows_every_text_as_it_is_and_runs_none(visit, tmp_path, tally):
    parts = []
    for text in HOSTILE:
        parts += [
            report.Heading(text),
            report.Paragraph(text),
            report.Paragraph(text, warning=True),
        ]
        parts += [report.Table([text], [[text, text]], emphasised=text), report.Picture(text, PNG)]
    report.write_page(tmp_path / "page.html", HOSTILE[1], parts)
    page = visit(tmp_path / "page.html")
    shown = [as_shown(text) for text in page.locator("p").all_text_contents()]
    assert shown[::2] == [as_shown(text) for text in HOSTILE]
    assert page.title() == as_shown(HOSTILE[1])
    assert page.locator("img").count() == len(HOSTILE)
    sizes = page.evaluate("() => [...document.images].map(i => i.naturalWidth)")
    assert all(sizes)  # the page's own policy lets its pictures through
    tally("hostile texts on a page").count("shown as they are", 6 * len(HOSTILE))


@pytest.mark.browser
def test_a_policy_on_the_page_holds_even_where_a_part_is_not_escaped(browser, tmp_path):
    """A second wall: parts that somebody forgets to escape."""
    file = tmp_path / "page.html"
    report.write_page(file, "t", [report.Paragraph("here")])
    html = file.read_text(encoding="utf-8")
    assert html.count("here") == 1
    file.write_text(html.replace("here", f"<script>{RUN}</script>{HOSTILE[17]}"))
    page = browser.new_page()
    reached = []
    page.on("response", lambda response: reached.append(response.url))
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate("() => window.pwned") is None
    assert not [url for url in reached if "127.0.0.1" in url]
    page.close()


@pytest.mark.browser
def test_the_demo_s_page_shows_hostile_methods_and_captions(visit, tmp_path, tally):
    (tmp_path / "a.png").write_bytes(PNG)
    entry = demo.method_entry(0.5, dict.fromkeys(HOSTILE, 0.5), 1.0, 0.1)
    demo.write_html(
        tmp_path / "report.html",
        title=HOSTILE[0],
        summary=HOSTILE,
        methods=dict.fromkeys(HOSTILE, entry),
        pictures=dict.fromkeys(HOSTILE, tmp_path / "a.png"),
        emphasised=HOSTILE[3],
    )
    page = visit(tmp_path / "report.html")
    cells = [as_shown(text) for text in page.locator("td:first-child").all_text_contents()]
    assert cells == [as_shown(text) for text in HOSTILE]
    tally("hostile texts on a page").count("shown as they are", 4 * len(HOSTILE))


@pytest.mark.browser
def test_a_run_s_page_shows_hostile_names_of_metrics(visit, tmp_path, tally):
    log = MetricsLog(tmp_path, "none", {})
    names = [HOSTILE[0], HOSTILE[3], HOSTILE[4], "a\x00<b>", "$\\foo$", "\u2028\x1b[31m|"]
    for step in (1, 2):
        log.write(step, {f"{name}{i}": 1.0 for i, name in enumerate(names)})
        gains = {}
        for kind in ("evaluation/total", *(f"watched/{name}" for name in names[:3])):
            gains |= {kind: 1.0, f"{kind}_base": 0.5, f"{kind}_gain": 0.5, f"{kind}_win_rate": 1.0}
            gains |= {f"{kind}_gain_low": 0.1, f"{kind}_gain_high": 0.9}
        log.write(step, gains, kind="evaluation")
    page = visit(write_run_report(tmp_path, HOSTILE[0], HOSTILE))
    cells = " ".join(page.locator("td").all_text_contents())
    for name in names[:3]:
        assert name in cells
    tally("hostile texts on a page").count("shown as they are", len(HOSTILE) + 6)


def test_pages_from_a_generator_hold_no_tag_of_their_texts(tmp_path, scale, tally):
    from html.parser import HTMLParser

    counted = tally("random texts on a page")
    odd = st.sampled_from("<>&\"'/=!-\0\ud800\x1b\u2028 abcsript")
    texts = st.text(odd, max_size=40) | st.text()

    class Tags(HTMLParser):
        def __init__(self, page: str) -> None:
            super().__init__()
            self.found: list[tuple] = []
            self.feed(page)

        def handle_starttag(self, tag, attributes):
            self.found.append((tag, [name for name, _ in attributes]))

    def tags_of(text: str) -> list[tuple]:
        parts = [report.Heading(text), report.Table([text], [[text]]), report.Picture(text, PNG)]
        report.write_page(tmp_path / "p.html", text, [*parts, report.Paragraph(text)])
        return Tags((tmp_path / "p.html").read_text(encoding="utf-8")).found

    expected = tags_of("plain")

    @examples(scale(300, 3_000, 30_000))
    @given(texts)
    def check(text):
        assert tags_of(text) == expected
        counted.count("escaped")

    check()


def test_pictures_of_hostile_names_are_drawn(tmp_path, scale, tally):
    odd = ["$\\foo$", "\ud800\x00\x1b<script>" * 50]
    for i, text in enumerate(scale(odd, HOSTILE[::2], HOSTILE)):
        figures.side_by_side(tmp_path / f"{i}.png", [text], {text: torch.rand(1, 3, 8, 8)})
        points = [GainPoint(1, 0.0, 0.0, 0.0)]
        for figure in (
            figures.curves({text: {1: 1.0}}),
            figures.gain_curves({text: points}),
            figures.two_gains((text, points), (text, points)),
            figures.gains_by_steps({text: {text: points}}),
            figures.paths({text: {text: [Point(text, 1, 1)]}}, "x"),
        ):
            assert figures.as_png(figure)[:4] == b"\x89PNG"
        tally("hostile texts in pictures").count("drawn", 6)


# Model cards


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Callable[..., Path]:
    """The embedded hypernetwork with other entries in its header."""
    from safetensors import safe_open

    tensors = load_file(EMBEDDED_ADAPTER)
    with safe_open(EMBEDDED_ADAPTER, "pt") as file:
        header = file.metadata()
    folder = tmp_path_factory.mktemp("adapters")

    def write(name: str = "a.safetensors", **entries: str) -> Path:
        save_file(tensors, folder / name, {**header, **entries})
        return folder / name

    return write


def front_matter(card: str) -> dict[str, Any]:
    _, facts, _ = card.split("---\n", 2)
    return yaml.safe_load(facts)


def check_markdown(text: str) -> None:
    """It has neither HTML nor links or pictures, but the one to the paper."""
    text = text.replace("[arXiv 2508.09968](https://arxiv.org/abs/2508.09968)", "")
    assert "<" not in text.partition("```python")[0]
    assert not re.search(r"(?<!\\)\]\(", text.partition("```python")[0])


def check_card(path: Path, hostile: str) -> None:
    """It has the parts of a good card, and none that the hostile text would add."""
    card = path.read_text(encoding="utf-8")
    assert front_matter(card).keys() <= {"pipeline_tag", "tags", "base_model", "model-index"} | {
        "base_model_relation"
    }
    lines = card.splitlines()
    assert [line for line in lines if line.startswith("#")][0].startswith("# ")
    assert sum(line.startswith("#") for line in lines) == 2
    assert sum(line.startswith("```") for line in lines) == 2
    table = [line for line in lines if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)
    body, _, _ = card.partition("```python")
    check_markdown(body)
    assert printable(card) == card


def header_entries(text: str) -> Iterator[dict[str, str]]:
    yield {"base_model": text}
    yield {"rewards": json.dumps({text: 1.0})}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_shows_what_a_header_says_and_no_more(adapter, tmp_path, tally, text):
    for entries in header_entries(text):
        encodable = {k: v.encode("utf-8", "replace").decode() for k, v in entries.items()}
        try:
            card = write_card(adapter(**encodable), tmp_path / "README.md")
        except AdapterError as error:  # the header itself is refused
            assert "a.safetensors" in str(error)
            tally("hostile texts in cards").count("refused")
        else:
            check_card(card, text)
            tally("hostile texts in cards").count("escaped")


def test_names_of_files_and_folders_stay_inside_their_quotes(adapter, tmp_path, tally):
    for i, text in enumerate(HOSTILE):
        name = text.replace("/", "_").replace("\0", "").replace("\ud800", "")[:80] or "a"
        path = adapter(f"{name}.safetensors")
        folder = tmp_path / name / f"{i}"
        folder.mkdir(parents=True)
        card = write_card(path, folder / "README.md")
        check_card(card, text)
        (line,) = [x for x in card.read_text().splitlines() if x.startswith("hypernetwork =")]
        (call,) = ast.parse(line).body
        assert [type(argument).__name__ for argument in call.value.args] == ["Constant"]
        tally("hostile texts in cards").count("escaped")


REPORTS: dict[str, bytes] = {
    "empty": b"", "garbage": b"\xff\x00", "a list": b"[]", "deep": b"[" * 100_000, "null": b"null",
    "deep object": b'{"steps":' * 100_000, "no steps": b"{}", "steps are 7": b'{"steps": 7}',
    "steps are a list": b'{"steps": [1]}', "steps are empty": b'{"steps": {}}',
    "steps are no numbers": b'{"steps": {"<script>": {}}}', "no base": b'{"steps": {"1": {}}}',
    "no settings": b'{"steps": {"1": {"base": {}}}}',
    "huge number": b'{"steps": ' + b"9" * 5000 + b"}",
    "utf-16": '{"steps": {}}'.encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_that_is_none_is_refused_and_leaves_no_card(adapter, tmp_path, tally, kind):
    path, out = tmp_path / "report.json", tmp_path / "card" / "README.md"
    path.write_bytes(REPORTS[kind])
    out.parent.mkdir()
    with pytest.raises(ValueError, match="report.json is"):
        write_card(adapter(), out, path)
    assert list(out.parent.iterdir()) == []
    tally("hostile reports to cards").count("refused")


def good_report() -> dict[str, Any]:
    base = {
        "images": 4, "prompts": 4, "runs": [{"reward_mean": 1.0}], "checker_mean": None,
        "checker_ci": None, "checker_gain": None, "checker_gain_ci": None, "checker": {},
        "reward_mean": 1.0, "reward_ci": None, "reward_gain": 0.0, "reward_gain_ci": [0.0, 0.1],
        "win_rate": 0.5, "rewards": {}, "seconds_per_image": 0.1, "network_evaluations": 1.0,
        "forward_passes": 1.0, "backward_passes": 0.0, "diversity": None, "pixel_diversity": 0.1,
        "diversity_base": None, "pixel_diversity_base": 0.1, "f_squared": None, "kl": 0.0,
        "recovered_share": {"reward": 0.5, "checker_mean": None},
    }  # fmt: skip
    return {
        "steps": {"1": {"base": base, "hypernoise": base}},
        "recovered_share": {"steps": 1, "reward": 0.9, "checker_mean": None},
        "ablation": {"rank_2": {"kind": "hypernoise", **base}},
        "at_our_reward": {"lora": None},
        "settings": {
            "model": "m", "adapters": ["a"], "loras": [], "rewards": {"hps": 5.0}, "prompts": 4,
            "search_prompts": 4, "multi_step_search_prompts": 4, "seeds": 2, "image_size": [8, 8],
            "batch_size": 1, "precision": "float32", "device": "cpu", "processes": 1,
            "diversity": "none",
        },
    }  # fmt: skip


WRONG_KEYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "steps.1.base.win_rate is missing": (("steps", "1", "base", "win_rate"), None),
    "settings.seeds is 'x' instead of a whole number": (("settings", "seeds"), "x"),
    "steps.1.base.reward_ci has 1 entries instead of 2": (("steps", "1", "base", "reward_ci"), [1]),
    "steps.1.magic is not a known method": (("steps", "1", "magic"), "base"),
    "ablation.rank_2.kind is 7 instead of": (("ablation", "rank_2", "kind"), 7),
    "steps.one: 'one' is not a number of steps": (("steps", "one"), {}),
    "steps.1.base.kl is True instead of a number": (("steps", "1", "base", "kl"), True),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG_KEYS)
def test_a_report_with_a_wrong_key_is_refused_by_its_name(adapter, tmp_path, message):
    (*places, last), value = WRONG_KEYS[message]
    tree = owner = json.loads(json.dumps(good_report()))
    for place in places:
        owner = owner[place]
    if value is None:
        del owner[last]
    else:
        owner[last] = owner[value] if value == "base" else value
    path, out = tmp_path / "report.json", tmp_path / "README.md"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        write_card(adapter(), out, path)
    assert str(raised.value).startswith(f"{path} is not a report.json")
    assert not out.exists()


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def test_cards_of_changed_reports_are_escaped_or_refused(adapter, tmp_path, scale, tally):
    counted = tally("changed reports to cards")
    path, out, weights = tmp_path / "report.json", tmp_path / "README.md", adapter()
    path.write_text(json.dumps(good_report()))
    check_evaluated(write_card(weights, out, path))
    tree = good_report()
    tree["steps"]["1"]["base"]["checker"] = dict.fromkeys(HOSTILE[:20], 0.5)
    path.write_text(json.dumps(tree))
    check_evaluated(write_card(weights, out, path))
    rng = random.Random(0)
    values = [*HOSTILE, None, 7, -1, [], {}, "nan", float("inf"), True, {"<script>": 1}]
    for _ in range(scale(200, 500, 20_000)):
        tree = good_report()
        owner, key = rng.choice(list(places(tree)))
        if rng.random() < 0.2 or not isinstance(owner, dict):
            del owner[key]
        elif rng.random() < 0.3:
            owner[rng.choice(HOSTILE)] = owner.pop(key)
        else:
            owner[key] = rng.choice(values)
        path.write_text(json.dumps(tree))
        try:
            write_card(weights, out, path)
        except ValueError as error:
            assert str(path) in str(error)
            counted.count("refused")
        else:
            check_evaluated(out)
            counted.count("escaped")


def check_evaluated(path: Path) -> None:
    card = path.read_text(encoding="utf-8")
    front_matter(card)
    check_markdown(card.split("---\n", 2)[2])
    assert printable(card) == card
