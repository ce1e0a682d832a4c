"""Faces: command line, figures, pages, explorer. No science is computed here.

`explore` and `report` are for notebooks; they are imported when they are first asked for.
"""

from importlib import import_module
from typing import Any

_HOME = {"explore": "apps.explorer.opening", "report": "apps.joined_report"}
__all__ = ["explore", "report"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
