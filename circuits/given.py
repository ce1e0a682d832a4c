"""Settings of a run, from a record or from options as a notebook gives them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """The settings with some fields set; one value will do where a field holds several.

    Raises:
        TypeError: no such field.
    """
    out = {}
    for name, value in options.items():
        many = isinstance(getattr(settings, name, None), tuple)
        alone = isinstance(value, str | int | float | Path)
        out[name] = (value,) if many and alone else tuple(value) if many else value
    return replace(settings, **out)  # type: ignore[type-var]
