"""The explorer's own script and style, put together from the files of `static/`."""

from functools import cache
from pathlib import Path

STATIC = Path(__file__).with_name("static")
ORDER = ("core", "data", "state", "takeaway", "heads", "trials", "tokens", "pattern", "whatif",
         "compare", "binding", "features", "main", "mount")  # fmt: skip
"""Files in the order in which they stand in the script: each uses those before it."""


@cache
def script() -> str:
    """One script that defines `Explorer` with `mount`, `page` and `ready`, and nothing else."""
    parts = [(STATIC / f"{name}.js").read_text("utf-8") for name in ORDER]
    return "\n".join(
        [
            'const Explorer = (() => {\n"use strict";',
            *parts,
            "return { mount, page, ready };\n})();",
        ]
    )


@cache
def start(form: str) -> str:
    """What begins the explorer in one of its forms: page, server, widget."""
    return (STATIC / f"start_{form}.js").read_text("utf-8")


@cache
def style() -> str:
    """The style sheet; it touches nothing outside `.explorer`."""
    return (STATIC / "explorer.css").read_text("utf-8")
