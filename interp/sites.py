"""Names for places in a model and for changes made there: `Head`, `Site`, `Edit`.

All three are plain data, so that they can be printed, saved, hashed and sent to any backend.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from interp.errors import SiteError

if TYPE_CHECKING:
    import torch

SiteKind = Literal[
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
]
"""The places in a layer, in forward order, under TransformerLens' names where it has them. `mlp_in`
is what the feed-forward module is given (`mlp.hook_in`), behind its norm and the norm's gain;
TransformerLens' `ln2.hook_normalized` is taken before the gain."""

SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
PER_HEAD: frozenset[SiteKind] = frozenset({"q", "k", "v", "pattern", "z"})

EditOp = Literal["zero", "mean", "resample", "replace", "add", "knockout", "uniform", "sink"]
VALUE_OPS: frozenset[EditOp] = frozenset({"mean", "resample", "replace", "add"})
PATTERN_OPS: frozenset[EditOp] = frozenset({"knockout", "uniform", "sink"})

_HEAD = re.compile(r"^\s*\(?\s*[Ll]?(\d+)\s*[-.,Hh]\s*[Hh]?(\d+)\s*\)?\s*$")


@dataclass(frozen=True, order=True)
class Head:
    """One attention (query) head. Prints as `L5H3`."""

    layer: int
    head: int

    @classmethod
    def parse(cls, text: "str | Sequence[int] | Head") -> "Head":
        """Read `L5H3`, `5.3`, `5-3`, `(5, 3)` or a pair of ints.

        Raises:
            SiteError: the text is none of these.
        """
        if isinstance(text, Head):
            return text
        if not isinstance(text, str):
            layer, head = text
            return cls(int(layer), int(head))
        match = _HEAD.match(text)
        if match is None:
            raise SiteError(f"{text!r} is no head; write it as L5H3, 5.3, 5-3 or (5, 3)")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, order=True)
class Site:
    """A place where activations can be read or edited."""

    kind: SiteKind
    layer: int
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise SiteError(f"unknown site kind {self.kind!r}; known: {', '.join(SITE_KINDS)}")
        if (self.head is not None) and self.kind not in PER_HEAD:
            raise SiteError(f"{self.kind} has no heads; leave head out")

    def __str__(self) -> str:
        where = f"L{self.layer}" if self.head is None else str(Head(self.layer, self.head))
        return f"{where}.{self.kind}"


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at a site.

    Attributes:
        site: where. `q`, `k`, `v`, `z` and `pattern` need a (query) head; the others take none.
            `q` and `k` are what the attention sees: after query-key norms and the rotary
            embedding. Under grouped-query attention an edited `k` or `v` is that of the named
            query head alone; the heads that share it are left as they are.
        op: `zero`; `replace` by, or `add`, a value; `mean` and `resample` are `replace` under
            the name of what the value is; on a pattern: `uniform` (equal attention to every
            visible key; a learned sink gets none), `sink` (all attention to the first visible
            key) and `knockout` (the keys in `keys` get no attention, the rest is renormalised;
            a row left with no key writes zero). Row reads show a pattern as it was before edits
            of pattern or keys.
        value: `[width]`, or `[positions, width]` with one row for each edited position, in order.
        rows: which suffixes of an `extend` (all when None). A prefill is row 0.
        positions: token positions inside the suffix (negative counts from its end), or absolute
            ones in a prefill. None edits all.
        keys: absolute key positions, for `knockout`.
    """

    site: Site
    op: EditOp
    value: "torch.Tensor | None" = None
    rows: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.op not in get_args(EditOp):
            raise SiteError(f"unknown edit {self.op!r}; known: {', '.join(get_args(EditOp))}")
        if (self.op in PATTERN_OPS) != (self.site.kind == "pattern"):
            raise SiteError(f"{self.op} does not act on {self.site.kind}")
        if (self.op in VALUE_OPS) != (self.value is not None):
            need = "needs a value" if self.op in VALUE_OPS else "takes no value"
            raise SiteError(f"{self.op} at {self.site} {need}")
        if (self.op == "knockout") != (self.keys is not None):
            raise SiteError(f"{self.op} at {self.site}: keys belong to knockout, and to it alone")
        if self.site.kind in PER_HEAD and self.site.head is None:
            raise SiteError(f"an edit at {self.site} must name a head")
