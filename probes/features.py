"""Sparse feature dictionaries: sparse autoencoders and transcoders, as plain data.

A dictionary encodes a row of activations into many features of which few are active, and decodes
them into a reconstruction: of the input (an autoencoder) or of another site's activation (a
transcoder, arXiv 2406.11944). `encode` is the reference; `encode_sparse` gives the same features
without ever holding a row of the whole dictionary, which at a million features would not fit.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ResultError, SiteError
from interp.sites import Site

BLOCK = 32_768
"""Features encoded at a time."""
CELLS = 2**24
"""Pre-activations held at a time, over rows and features of a block."""
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "skip")


@dataclass(frozen=True, eq=False)
class Sparse:
    """Active features of a batch of rows, sorted by row, then feature; all values positive."""

    row: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    n_rows: int


@dataclass(frozen=True)
class Activation:
    """What makes a feature active: the field that a dictionary of this kind needs, and the rule."""

    needs: str | None
    says: str
    fire: "Callable[[Tensor, Dictionary], Tensor] | None"


def _above(pre: Tensor, threshold: Tensor | None) -> Tensor:
    assert threshold is not None
    return (pre * (pre > threshold)).relu()


def _top(pre: Tensor, k: int | None) -> Tensor:
    kept = pre.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept).relu())


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(None, "every positive pre-activation", lambda pre, _: pre.relu()),
    "jumprelu": Activation(
        "threshold",
        "pre-activations above the feature's own threshold (2407.14435)",
        lambda pre, own: _above(pre, own.threshold),
    ),
    "topk": Activation(
        "k",
        "the k largest of a row, where positive; of equal ones the lowest feature (2406.04093)",
        lambda pre, own: _top(pre, own.k),
    ),
    "batchtopk": Activation(
        "threshold",
        "the k x rows largest of a training batch; afterwards one fixed threshold stands for "
        "that, so that a row's features do not depend on its batch: kept as jumprelu (2412.06410)",
        None,
    ),
}


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Weights of a dictionary and where it belongs.

    Attributes:
        activation: a row of `ACTIVATIONS`.
        site: where it reads; None if its file does not say.
        out_site: what a transcoder reconstructs; None for an autoencoder.
        threshold: for `jumprelu`; `k`: for `topk`.
        centred: b_dec is subtracted from the (scaled) input before encoding.
        scale: the input is multiplied by it first, and the reconstruction divided by it.
        skip: affine skip of a transcoder: input @ skip is added to the reconstruction.
        about: what its file says, or the record of its training.

    Raises:
        ResultError: shapes that do not fit, or an activation without what it needs.
    """

    name: str
    activation: Literal["relu", "jumprelu", "topk", "batchtopk"]
    W_enc: Float[Tensor, "d_in d_dict"]
    b_enc: Float[Tensor, " d_dict"]
    W_dec: Float[Tensor, "d_dict d_out"]
    b_dec: Float[Tensor, " d_out"]
    site: Site | None = None
    out_site: Site | None = None
    threshold: Float[Tensor, " d_dict"] | None = None
    k: int | None = None
    centred: bool = False
    scale: float = 1.0
    skip: Float[Tensor, "d_in d_out"] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise ResultError(f"dictionary {self.name}: {fault}")

    def __repr__(self) -> str:
        where = f"{self.site} -> {self.out_site}" if self.is_transcoder else str(self.site)
        sizes = f"{self.d_in} -> {self.d_dict} -> {self.d_out}"
        return f"Dictionary({self.name}: {self.activation}, {sizes}, at {where})"

    @property
    def d_in(self) -> int:
        """Width of what goes in."""
        return self.W_enc.shape[0]

    @property
    def d_dict(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.W_dec.shape[1]

    @property
    def is_transcoder(self) -> bool:
        """Whether something else than the input is reconstructed."""
        return self.out_site is not None or self.skip is not None or self.d_in != self.d_out

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of a SHA-256 over all weights and the way they are used."""
        used = f"{self.activation} {self.k} {self.centred} {self.scale}"
        digest = hashlib.sha256(used.encode())
        for name, weight in self._weights().items():
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            raw = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.hexdigest()[:16]

    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_dict"]:
        """Features of rows, dense: the slow, obvious reference.

        Raises:
            SiteError: rows of another width.
        """
        pre = self._input(x) @ self.W_enc + self.b_enc
        fire = ACTIVATIONS[self.activation].fire
        assert fire is not None
        return fire(pre, self)

    def encode_sparse(self, x: Float[Tensor, "row d_in"], *, block: int = BLOCK) -> Sparse:
        """The active features of rows; `block` features (and as many rows as fit) at a time.

        Raises:
            SiteError: rows of another width.
        """
        x = self._input(x)
        n = max(1, CELLS // min(block, self.d_dict))
        find = self._find_top if self.activation == "topk" else self._find_above
        parts = [(start, find(x[start : start + n], block)) for start in range(0, len(x), n)]
        parts = parts or [(0, find(x, block))]
        row = torch.cat([row + start for start, (row, _, _) in parts])
        feature = torch.cat([feature for _, (_, feature, _) in parts])
        return Sparse(row, feature, torch.cat([value for _, (*_, value) in parts]), len(x))

    def decode(
        self, z: Float[Tensor, "row d_dict"], x: Float[Tensor, "row d_in"] | None = None
    ) -> Float[Tensor, "row d_out"]:
        """Reconstruction from dense features; a skip needs the input `x` too.

        Raises:
            SiteError: a skip and no input.
        """
        return self._output(z.to(self.W_dec) @ self.W_dec, x)

    def decode_sparse(
        self, z: Sparse, x: Float[Tensor, "row d_in"] | None = None
    ) -> Float[Tensor, "row d_out"]:
        """Reconstruction from sparse features; see `decode`."""
        begins = torch.searchsorted(z.row, torch.arange(z.n_rows, device=z.row.device))
        out = F.embedding_bag(
            z.feature, self.W_dec, begins, mode="sum", per_sample_weights=z.value.to(self.W_dec)
        )
        return self._output(out, x)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Dictionary":
        """The same dictionary elsewhere, or in another precision."""
        moved = {name: w.to(device=device, dtype=dtype) for name, w in self._weights().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _weights(self) -> dict[str, Tensor]:
        return {name: w for name in WEIGHTS if (w := getattr(self, name)) is not None}

    def _input(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.d_in:
            at = f" at {self.site}" if self.site else ""
            raise SiteError(
                f"dictionary {self.name} reads rows of width {self.d_in}{at}, got shape "
                f"{tuple(x.shape)}; give it activations of the site that it was trained on"
            )
        x = x.to(self.W_enc) * self.scale if self.scale != 1 else x.to(self.W_enc)
        return x - self.b_dec if self.centred else x

    def _output(self, out: Tensor, x: Tensor | None) -> Tensor:
        out = (out + self.b_dec) / self.scale
        if self.skip is None:
            return out
        if x is None:
            raise SiteError(f"dictionary {self.name} has a skip; give decode the input `x` as well")
        return out + x.to(self.skip) @ self.skip

    def _pre(self, x: Tensor, lo: int, block: int) -> Tensor:
        return torch.addmm(self.b_enc[lo : lo + block], x, self.W_enc[:, lo : lo + block])

    def _find_above(self, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for lo in range(0, self.d_dict, block):
            pre = self._pre(x, lo, block)
            limit = 0 if self.threshold is None else self.threshold[lo : lo + block].clamp(min=0)
            row, feature = (pre > limit).nonzero(as_tuple=True)
            found.append((row, feature + lo, pre[row, feature]))
        row, feature, value = (torch.cat(part) for part in zip(*found, strict=True))
        if len(found) == 1:
            return row, feature, value
        order = row.argsort(stable=True)
        return row[order], feature[order], value[order]

    def _find_top(self, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        assert self.k is not None
        values = x.new_empty(len(x), 0)
        features = values.long()
        for lo in range(0, self.d_dict, block):
            index, best = top_columns(self._pre(x, lo, block), self.k)
            values, features = torch.cat([values, best], 1), torch.cat([features, index + lo], 1)
            index, values = top_columns(values, self.k)
            features = features.gather(1, index)
        row, slot = (values > 0).nonzero(as_tuple=True)
        return row, features[row, slot], values[row, slot]


def top_columns(
    pre: Float[Tensor, "row column"], k: int
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
    """The k largest of each row, in order of column; of equal positive ones the first columns.

    `topk` leaves open which of equal values it takes, so rows with a tie at the border are sorted.
    """
    k = min(k, pre.shape[1])
    values, index = pre.topk(k, dim=1, sorted=False)
    border = values.amin(1, keepdim=True)
    tied = ((pre >= border).sum(1) > k) & (border[:, 0] > 0)
    if tied.any():
        index[tied] = pre[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    index = index.sort(1).values
    return index, pre.gather(1, index)


def _fault(d: Dictionary) -> str | None:
    """What is wrong with a dictionary, or None."""
    if d.activation not in ACTIVATIONS:
        return f"unknown activation {d.activation!r}; known: {', '.join(ACTIVATIONS)}"
    if d.activation == "batchtopk":
        return "batchtopk holds in training only; give its threshold, and jumprelu as activation"
    need = ACTIVATIONS[d.activation].needs
    if need is not None and getattr(d, need) is None:
        return f"{d.activation} needs {need}; its file must hold one"
    if d.W_enc.ndim != 2 or d.W_dec.ndim != 2:
        return f"W_enc and W_dec must be matrices, not {d.W_enc.ndim}- and {d.W_dec.ndim}-d"
    (d_in, d_dict), d_out = d.W_enc.shape, d.W_dec.shape[1]
    fits = {
        "b_enc": (d_dict,), "W_dec": (d_dict, d_out), "b_dec": (d_out,), "threshold": (d_dict,),
        "skip": (d_in, d_out),
    }  # fmt: skip
    for name, shape in fits.items():
        weight = getattr(d, name)
        if weight is not None and weight.shape != shape:
            return f"{name} has shape {tuple(weight.shape)}, expected {shape} beside the others"
        if weight is not None and weight.dtype != d.W_enc.dtype:
            return f"{name} is {weight.dtype}, W_enc {d.W_enc.dtype}; all must have one precision"
    if d.k is not None and not 1 <= d.k <= d_dict:
        return f"k = {d.k}, expected 1 to {d_dict}"
    if d.centred and d_in != d_out:
        return f"b_dec of width {d_out} cannot be subtracted from an input of width {d_in}"
    return None
