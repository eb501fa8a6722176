"""report.json and report.html: the numbers and pictures of an evaluation, readable offline."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from ...hypernoise_core.atomic_file import write_atomically

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.ours { background: #eef5ff; font-weight: 600; }
img { max-width: 100%; height: auto; }
"""


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes the numbers."""
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def write_html(
    path: Path,
    *,
    title: str,
    summary: list[str],
    methods: dict[str, dict[str, Any]],
    figures: dict[str, Path],
    emphasised: str,
) -> None:
    """Writes one self-contained page.

    Args:
        summary: paragraphs of plain text.
        methods: as in report.json; see `method_entry`.
        figures: pictures (PNG) by caption, embedded in the page.
        emphasised: the method whose row stands out.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in summary]
    parts.append(_table(methods, emphasised))
    for caption, picture in figures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        text = html.escape(caption)
        parts.append(f'<h2>{text}</h2><img alt="{text}" src="data:image/png;base64,{data}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    write_atomically(path, page.encode())


def _table(methods: dict[str, dict[str, Any]], emphasised: str) -> str:
    categories = list(next(iter(methods.values()))["checker"])
    names = ["method", *categories, "checker mean", "reward", "seconds per image"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for name, entry in methods.items():
        numbers = [f"{entry['checker'][category]:.2f}" for category in categories]
        numbers += [f"{entry['checker_mean']:.3f}", f"{entry['reward_mean']:.2f}"]
        numbers.append(f"{entry['seconds_per_image']:.4f}")
        cells = "".join(f"<td>{text}</td>" for text in (html.escape(name), *numbers))
        rows.append(f"<tr{' class=ours' if name == emphasised else ''}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def method_entry(
    checker_mean: float, checker: dict[str, float], reward_mean: float, seconds_per_image: float
) -> dict[str, Any]:
    """One method's numbers as report.json keeps them; shares in [0, 1]."""
    return {
        "checker_mean": checker_mean,
        "checker": checker,
        "reward_mean": reward_mean,
        "seconds_per_image": seconds_per_image,
    }
