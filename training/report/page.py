"""report.json and report.html: the numbers and pictures of an evaluation, readable offline."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.text import printable

REPORTS = ("report.html", "report.json", "report.md")
"""What reports of an evaluation are called."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.ours { background: #eef5ff; font-weight: 600; }
p.warning { border-left: .3rem solid #cc3b3b; background: #fdf1f1; padding: .6rem 1rem; }
img { max-width: 100%; height: auto; }
"""
# Nothing is run and nothing is fetched, whatever a caption holds.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
_MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes the numbers."""
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Writes a page of parts, which `heading`, `paragraph`, `table` and `picture` make."""
    name = _escaped(title)
    head = f'<meta charset="utf-8">{_POLICY}<title>{name}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{name}</h1>", *parts])
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    write_atomically(path, page.encode())


def heading(text: str) -> str:
    """A heading below the page's title."""
    return f"<h2>{_escaped(text)}</h2>"


def paragraph(text: str, *, warning: bool = False) -> str:
    """A paragraph of plain text; a warning stands out."""
    return f"<p{' class=warning' if warning else ''}>{_escaped(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], emphasised: str = "") -> str:
    """A table of texts; the row whose first cell is `emphasised` stands out."""
    lines = []
    for row in rows:
        mark = " class=ours" if emphasised and row[0] == emphasised else ""
        lines.append(f"<tr{mark}>{_cells('td', row)}</tr>")
    header = f"<thead><tr>{_cells('th', head)}</tr></thead>"
    return f"<table>{header}<tbody>{''.join(lines)}</tbody></table>"


def _escaped(text: str) -> str:
    """The text as HTML shows it, between tags and in an attribute."""
    return html.escape(printable(text))


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{_escaped(text)}</{tag}>" for text in texts)


def picture(caption: str, content: Path | bytes) -> str:
    """A picture below its caption, embedded: a .png or .jpg file, or a PNG's bytes."""
    is_file = isinstance(content, Path)
    mime = _MIME_TYPES[content.suffix] if is_file else "image/png"
    data = base64.b64encode(content.read_bytes() if is_file else content).decode()
    return f'{heading(caption)}<img alt="{_escaped(caption)}" src="data:{mime};base64,{data}">'
