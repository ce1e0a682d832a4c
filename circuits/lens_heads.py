"""From a result into a TransformerLens notebook in one line, and back.

lens = circuits.to_lens(result)                  # lens.heads, lens.names, lens.labels
_, cache = bridge.run_with_cache(text, names_filter=lens.names)
circuits.validate(model, circuits.from_lens(scores, top=10))        # scores [layer, head]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.head_sets import HeadSet, read_heads
from circuits.scan_result import ScanResult
from interp.errors import ResultError
from interp.hook_names import hook_name, lens_heads, ranked_heads
from interp.sites import Head, Site

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


@dataclass(frozen=True)
class LensHeads:
    """Heads in TransformerLens' words.

    Attributes:
        heads: `(layer, head)`, best first.
        labels: `L5H3`, as its own labels.
        names: the hook points to cache or to edit: `blocks.5.attn.hook_z`, each layer once.
    """

    heads: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]


def to_lens(heads: Any, *, top: int = 10, kind: str = "z") -> LensHeads:
    """Heads of a scan, or in any form that `circuits.read_heads` takes, for a bridge.

    Args:
        top: how many heads of a scan or a ranking.
        kind: the kind of site whose hook points are named: `z`, `pattern`, `q`, ...
    """
    found = heads_of(heads, top=top)
    sites = dict.fromkeys(Site(kind, h.layer) for h in sorted(found))  # type: ignore[arg-type]
    return LensHeads(
        tuple(lens_heads(found)), tuple(map(str, found)), tuple(hook_name(s) for s in sites)
    )


def from_lens(scores: Any, *, top: int | None = None, source: str = "TransformerLens") -> HeadSet:
    """A head set from scores `[layer, head]`, or from pairs `[(layer, head), ...]`, best first.

    Raises:
        ResultError, SiteError: neither of these, or no heads.
    """
    pairs = not hasattr(scores, "shape")
    ranked = [Head.parse(pair) for pair in scores] if pairs else ranked_heads(scores)
    if not ranked:
        raise ResultError("no head has a score")
    values = None if pairs else np.asarray(
        scores.detach().cpu() if hasattr(scores, "detach") else scores, dtype=float
    )  # fmt: skip
    return HeadSet(tuple(ranked[:top]), values, f"scores from {source}", "text")


def heads_of(heads: Any, *, top: int | None, model: "HFModel | None" = None) -> list[Head]:
    """The heads meant by a scan, a head set, or any form that `read_heads` takes."""
    if isinstance(heads, ScanResult):
        return heads.top(top)
    if isinstance(heads, HeadSet):
        return list(heads.heads[:top])
    sizes = {} if model is None else {
        "n_groups": model.spec.n_groups, "n_heads": model.spec.n_heads
    }  # fmt: skip
    given: Sequence[Any] = heads
    return list(read_heads(given, **sizes).heads[:top])
