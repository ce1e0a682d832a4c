"""How good a dictionary is on rows and texts that it was not trained on.

Share of variance unexplained, sparsity and dead features of stored rows; and what the model's own
prediction loses when the reconstruction stands in for the activation: the "loss recovered" of
arXiv 2404.16014, which measures against zero ablation; against mean ablation here as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.errors import PromptError, ResultError
from interp.sites import Edit, Site
from interp.trace import SiteRead
from probes.feature_batches import Rows, take
from probes.feature_sites import check_dictionary
from probes.features import Dictionary

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

BLOCK = 2048
SKIP_FIRST = 4
"""First positions of a window are attention sinks with activations of their own."""


@dataclass(frozen=True)
class Quality:
    """Of a dictionary on some rows.

    Attributes:
        fvu: squared error of the reconstruction over squared distance from the mean row.
        l0: active features of a row, on average.
        dead: share of features that fire on none of the rows.
        cosine: between a row and its reconstruction, on average.
    """

    fvu: float
    l0: float
    dead: float
    cosine: float
    n_rows: int


@dataclass(frozen=True)
class CrossEntropy:
    """Mean loss of the next token, in nats, over the positions from `skip_first` on.

    Attributes:
        original, spliced: of the model, and with the reconstruction in place of the activation.
        mean_ablated, zero_ablated: with the mean activation, or zero, in its place.
        n_tokens: predictions that the means are over.
    """

    original: float
    spliced: float
    mean_ablated: float
    zero_ablated: float
    n_tokens: int

    @property
    def recovered(self) -> float | None:
        """Share of the mean ablation's harm that the reconstruction avoids; None without harm."""
        return _share(self.mean_ablated, self.spliced, self.original)

    @property
    def recovered_from_zero(self) -> float | None:
        """The same of zero ablation, which flatters: a zero is far from any activation."""
        return _share(self.zero_ablated, self.spliced, self.original)


def quality(
    dictionary: Dictionary, x: Rows, targets: Rows | None = None, *, block: int = BLOCK
) -> Quality:
    """Measure a dictionary on held-out rows, `block` of them at a time.

    Args:
        x: `[row, d_in]`, in memory or mapped.
        targets: `[row, d_out]`, what a transcoder has to reconstruct.

    Raises:
        ResultError: no rows; a transcoder without targets, or as many of them as rows.
        SiteError: rows of another width.
    """
    goal = _goal(dictionary, x, targets)
    weight = dictionary.W_dec
    total = torch.zeros(dictionary.d_out, dtype=torch.float64)
    sums = torch.zeros(4, dtype=torch.float64)  # error, squares, active, cosine
    fired = torch.zeros(dictionary.d_dict, dtype=torch.bool, device=weight.device)
    for index in torch.arange(len(x)).split(block):
        rows = take(x, index.numpy()).to(weight.device)
        y = rows if goal is x else take(goal, index.numpy()).to(weight.device)
        z = dictionary.encode_sparse(rows)
        made = dictionary.decode_sparse(z, rows).float()
        fired[z.feature] = True
        total += y.double().sum(0).cpu()
        cosine = F.cosine_similarity(made, y, dim=1).double().sum().item()
        error = (made - y).double().square().sum().item()
        squares = y.double().square().sum().item()
        sums += torch.tensor([error, squares, len(z.row), cosine], dtype=torch.float64)
    error, squares, active, cosine = sums.tolist()
    spread = squares - total.square().sum().item() / len(x)
    if spread <= 0:
        raise ResultError(f"{len(x)} rows that do not vary; measure on more, and different, rows")
    return Quality(
        fvu=error / spread,
        l0=active / len(x),
        dead=1 - fired.float().mean().item(),
        cosine=cosine / len(x),
        n_rows=len(x),
    )


def ce_recovered(
    model: "HFModel",
    dictionary: Dictionary,
    windows: Sequence[Sequence[int]],
    *,
    skip_first: int = SKIP_FIRST,
) -> CrossEntropy:
    """What the model's prediction loses when a dictionary's reconstruction replaces a site.

    Each window stands alone. The reconstruction stands in at every position from `skip_first` on;
    a transcoder reads its site and replaces its output site.

    Raises:
        SiteError: the dictionary does not fit the model.
        PromptError: no window with a prediction at `skip_first` or later.
    """
    check_dictionary(dictionary, model.spec)
    assert dictionary.site is not None
    place = dictionary.out_site or dictionary.site
    used = [list(w) for w in windows if len(w) > skip_first + 1]
    if not used:
        raise PromptError(f"no window has more than {skip_first + 1} tokens; use longer ones")
    losses = torch.zeros(4, dtype=torch.float64)
    total = torch.zeros(dictionary.d_out, dtype=torch.float64)
    for window in used:
        own, x, y = _watched(model, window, (dictionary.site, place), skip_first)
        z = dictionary.encode_sparse(x.to(dictionary.W_dec.device))
        made = dictionary.decode_sparse(z, x.to(dictionary.W_dec.device)).float().cpu()
        edits = {"replace": made, "zero": None}
        losses[:3] += torch.tensor([own, *_edited(model, window, place, edits, skip_first)])
        total += y.double().sum(0)
    mean = (total / sum(len(w) - skip_first for w in used)).float()
    for window in used:
        losses[3] += _edited(model, window, place, {"mean": mean}, skip_first)[0]
    n = sum(len(w) - skip_first - 1 for w in used)
    original, spliced, zero, average = (losses / n).tolist()
    return CrossEntropy(original, spliced, average, zero, n)


def _goal(dictionary: Dictionary, x: Rows, targets: Rows | None) -> Rows:
    if len(x) == 0:
        raise ResultError("no rows to measure on; use more text")
    if targets is None and dictionary.is_transcoder:
        raise ResultError(f"{dictionary.name} is a transcoder; give the targets as well")
    if targets is not None and len(targets) != len(x):
        raise ResultError(f"{len(x)} rows and {len(targets)} targets; give one target a row")
    return x if targets is None else targets


def _watched(
    model: "HFModel", window: list[int], sites: tuple[Site, Site], skip_first: int
) -> tuple[float, Tensor, Tensor]:
    """Summed loss of a window, and its activations at two sites (which may be one)."""
    positions = tuple(range(skip_first, len(window)))
    read = SiteRead(tuple(dict.fromkeys(sites)), (positions,))
    trace = model.extend(None, [window], read=[read], logits=[positions[:-1]])
    x, y = (trace.sites[site].float() for site in sites)
    return _loss(trace.logits, window, skip_first), x, y


def _edited(
    model: "HFModel",
    window: list[int],
    place: Site,
    edits: dict,
    skip_first: int,
) -> list[float]:
    """Summed losses of a window under each edit of a place, one row an edit."""
    positions = tuple(range(skip_first, len(window)))
    made = [
        Edit(place, op, value=value, rows=(i,), positions=positions)
        for i, (op, value) in enumerate(edits.items())
    ]
    logits = [positions[:-1]] * len(made)
    trace = model.extend(None, [window] * len(made), edits=made, logits=logits)
    return [_loss(part, window, skip_first) for part in trace.logits.split(len(positions) - 1)]


def _loss(logits: Float[Tensor, "row d_vocab"], window: list[int], skip_first: int) -> float:
    goals = torch.tensor(window[skip_first + 1 :])
    return F.cross_entropy(logits.float(), goals, reduction="sum").item()


def _share(ablated: float, spliced: float, original: float) -> float | None:
    return (ablated - spliced) / (ablated - original) if ablated > original else None
