"""A page as Markdown: the same words and tables; of a figure its caption, and where it is drawn.

Converted by markdownify from the parts of the page, before pictures are drawn, so that no script
can leak. What comes from a model or a file stays text: every character that Markdown or HTML takes
for markup is escaped.
"""

import re
from collections.abc import Iterable
from typing import Any

from bs4 import Tag
from markdownify import MarkdownConverter

from apps import html_parts as h

_MARKUP = re.compile(r"([\\`*_\[\]<&|~])")
_BLOCK = re.compile(
    r"^(\s*\d{0,9})([-+](?=\s|$)|[-=]+\s*$|#{1,6}(?=\s|$)|>|[.)](?<=\d.)(?=\s|$))", re.M
)
"""What begins a list, an underline, a heading or a quotation, at the beginning of a line."""


def to_markdown(title: str, parts: Iterable[h.Part], *, page: str) -> str:
    """Parts of a page as Markdown; `page` is the file name of the page that draws the figures."""
    whole = [f"<h1>{h.safe(title)}</h1>", *map(_undrawn, parts)]
    return str(_Converter(page).convert("\n".join(whole))).strip() + "\n"


def _undrawn(part: h.Part) -> str:
    if isinstance(part, str):
        return part
    return f'<p class="figure" id="{part.name}">{h.safe(part.caption)}</p>'


class _Converter(MarkdownConverter):
    """Tags of our pages that Markdown has no mark for, and escapes that tables need."""

    def __init__(self, page: str) -> None:
        super().__init__(heading_style="ATX", bullets="-")
        self.page = page

    def escape(self, text: str, _: Any) -> str:
        return _BLOCK.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", text))

    def convert_p(self, el: Tag, text: str, **_: Any) -> str:
        words, classes = " ".join(text.split()), set(el.get("class") or ())
        if "figure" in classes:
            words = f"*Figure:* {words} ([see it]({self.page}#{el['id']}))"
        return f"\n\n{'> ' if classes & {'note', 'answer'} else ''}{words}\n\n"

    def convert_hN(self, n: int, el: Tag, text: str, _: Any) -> str:
        return f"\n\n{_name(el)}{'#' * min(n, 6)} {' '.join(text.split())}\n\n"

    def convert_pre(self, el: Tag, _text: str, **_: Any) -> str:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", el.text)), default=0))
        return f"\n\n{fence}\n{el.text.strip()}\n{fence}\n\n"

    def convert_details(self, el: Tag, text: str, **_: Any) -> str:
        return f"\n\n{_name(el)}{text.strip()}\n\n"

    def convert_summary(self, _el: Tag, text: str, **_: Any) -> str:
        return f"\n\n**{text.strip()}**\n\n"


def _name(el: Tag) -> str:
    """Markdown has no names of its own for places that are linked to."""
    return f'<a id="{el["id"]}"></a>\n' if el.get("id") else ""
