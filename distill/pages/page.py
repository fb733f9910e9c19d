"""A page as one file of HTML: style and script are within it, and it asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.pages.blocks import Section
from distill.runtime.messages import printable

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """What is on a page.

    Attributes:
        title: its heading. lead: what this is, for a reader who knows nothing of it.
        sections: those without blocks are left out.
    """

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The file. All text is shown as text, whatever it holds: what a model writes is not to be trusted."""
        script, style = ((TEMPLATES / name).read_text("utf-8") for name in ("page.js", "page.css"))
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, finalize=_printed,
        )  # fmt: skip
        return environment.get_template("page.html").render(
            page=self,
            sections=[section for section in self.sections if section.blocks],
            script=Markup(script),
            style=Markup(style),
            script_hash=_digest(script),
        )


def _printed(value: object) -> object:
    """What is put into the page: control characters, which no HTML may hold, as a sign that stands for them."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(script: str) -> str:
    """Of the script, so that a browser runs this one and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
