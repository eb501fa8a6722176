"""report.json and report.html: the numbers and pictures of a run or an evaluation, offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...hypernoise_core.atomic_file import write_atomically
from ...hypernoise_core.text import printable

REPORTS = ("report.html", "report.json", "report.md")
"""File names of an evaluation's reports."""
_TEMPLATE = "page.html.jinja"
_MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Heading:
    """A heading below the page's title."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text; a warning stands out."""

    kind: ClassVar = "paragraph"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table of texts; the row whose first cell is `emphasised` stands out."""

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    emphasised: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture below its caption, embedded in the page: a .png or .jpg file, or a PNG's bytes."""

    kind: ClassVar = "picture"
    caption: str
    content: Path | bytes

    @property
    def mime(self) -> str:
        is_file = isinstance(self.content, Path)
        return _MIME_TYPES[self.content.suffix] if is_file else "image/png"

    @property
    def data(self) -> str:
        """In base64."""
        is_file = isinstance(self.content, Path)
        return base64.b64encode(self.content.read_bytes() if is_file else self.content).decode()


Part = Heading | Paragraph | Table | Picture


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes the numbers."""
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def write_page(path: Path, title: str, parts: Sequence[Part]) -> None:
    """Writes a self-contained page; all texts appear on it as they are."""
    template = _environment().get_template(_TEMPLATE)
    write_atomically(path, template.render(title=title, parts=parts).encode())


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # Before escaping; as it gives plain texts, nothing counts as HTML that is safe.
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
