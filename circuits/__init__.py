"""Claims and their tests: scores of heads, with their uncertainty.

    model = interp.load("smollm2-135m")
    result = circuits.scan(model)
    result.figure()

Names are looked up when used, so that importing the package imports no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.compare import compare
    from circuits.plan import ScanSettings
    from circuits.retrieval import scan
    from circuits.scan_result import ScanResult

__all__ = ["ScanResult", "ScanSettings", "compare", "scan"]

_HOME = {
    "scan": "circuits.retrieval",
    "ScanSettings": "circuits.plan",
    "ScanResult": "circuits.scan_result",
    "compare": "circuits.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuits' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # `circuits.compare` is also a module: the function wins
    return value
