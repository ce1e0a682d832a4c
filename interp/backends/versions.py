"""Are the optional libraries of a kind that this code knows? Asked before they are imported."""

from importlib import metadata

from interp.errors import ModelError

NEEDED = {"transformer-lens": ((3, 9), (5, 0)), "nnsight": ((0, 8), (0, 9))}
"""Lowest version, and the first that is too new."""


def need(package: str) -> None:
    """Raise ModelError unless a version of the package is installed that this code was run with."""
    low, high = NEEDED[package]
    wanted = f"{package}>={_told(low)},<{_told(high)}"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ModelError(f"{package} is not installed; pip install '{wanted}'") from None
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not low <= numbers < high:
        raise ModelError(
            f"{package} {found} is installed, whose interface differs; pip install '{wanted}'"
        )


def _told(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
