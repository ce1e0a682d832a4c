"""The explorer as one offline HTML file: no server, no model, nothing loaded from elsewhere."""

import json
from pathlib import Path
from typing import Any

from apps.explorer.assets import script, start, style
from apps.explorer.payload import Payload
from apps.html_parts import safe, write_whole


def as_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def document(title: str, *, head: str, body: str) -> str:
    """A page of the explorer."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{safe(title)}</title>'
        f"<style>body {{ margin: 0; background: #f4f6f8; }}</style>"
        f"<style>{style()}</style>{head}</head>\n<body>{body}</body></html>\n"
    )


def page(payload: Payload, title: str) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    body = (
        '<div id="explorer" class="explorer"></div>'
        f'<script type="application/json" id="payload">{as_json(payload.as_plain())}</script>'
        f"<script>{script()}\n{start('page')}</script><script>{get_plotlyjs()}</script>"
    )
    return document(title, head="", body=body)


def export(payload: Payload, path: str | Path, *, title: str = "mnemoscope explorer") -> Path:
    """Write the page, whole or not at all.

    Raises:
        ResultError: it cannot be written.
    """
    return write_whole(path, page(payload, title))
