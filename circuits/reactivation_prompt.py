"""Trace a prompt: which features of earlier content tokens are active again before a prediction.

Three measures of each: its attribution to the logit of the next token (gradient times activation,
one backward pass), its exact effect (the feature's part of the residual taken away, one row each)
for the largest, and the heads whose outputs bring it: what each writes, from the keys at which the
feature was active before, along the feature's encoder direction, in units of its pre-activation.

A head's contribution counts whatever it copies from that position, not the feature alone: the
features of lower layers, from which heads read, are other ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.prompt_trace import NEW, REACTIVATED, PromptTrace
from circuits.reactivation_pairs import Sources, find_sources, source_positions
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Edit, Head, Site
from interp.trace import Gradients, RowRead
from probes.feature_sites import check_dictionary
from probes.features import Dictionary, Sparse
from probes.token_text import token_text

if TYPE_CHECKING:
    import pandas as pd

    from interp.backends.hf import HFModel

Objective = Callable[[Tensor, int], Tensor]
OBJECTIVES: dict[str, tuple[str, Objective]] = {
    "logit": ("the logit", lambda row, target: row[target]),
    "centred": ("the logit over the mean logit", lambda row, target: row[target] - row.mean()),
    "log-prob": ("the log-probability", lambda row, target: row.log_softmax(-1)[target]),
}
"""What features are attributed to, of the token that comes next."""
LAYERS_BELOW = {"resid_pre": 0, "resid_mid": 1, "resid_post": 1}
"""Sites that can be traced, and whether heads of the site's own layer write to it."""
MOST_SOURCES = 32
"""Latest sources of a feature whose keys are read."""
HEADS_LISTED = 3


@dataclass(frozen=True, eq=False)
class _Active:
    """Active features of the prompt that are looked at, with what is known of each."""

    position: Int[np.ndarray, " active"]
    feature: Int[np.ndarray, " active"]
    value: Float[np.ndarray, " active"]
    attribution: Float[np.ndarray, " active"]
    sources: Sources
    content: Bool[np.ndarray, " pos"]


@dataclass(frozen=True, eq=False)
class _Prediction:
    """A prompt cut at its prediction."""

    tokens: list[int]
    target: int | None
    objective: Objective

    def score(self, logits: Float[Tensor, "row d_vocab"], target: int) -> Float[Tensor, " row"]:
        """The objective in every row of logits."""
        return torch.stack([self.objective(row, target) for row in logits])


def trace_prompt(
    model: "HFModel",
    dictionary: Dictionary,
    tokens: Sequence[int],
    *,
    function: Bool[np.ndarray, " token"],
    position: int = -1,
    target: int | None = None,
    objective: str = "logit",
    heads: Sequence[Head] | None = None,
    n_features: int = 32,
    n_exact: int = 12,
    skip_first: int = 1,
    left_out: Bool[np.ndarray, " feature"] | None = None,
) -> PromptTrace:
    """Trace the prediction behind a position of a prompt.

    Args:
        dictionary: an autoencoder of the residual stream.
        function: of every token of the vocabulary, whether it is a function token; others are
            content, the only sources.
        target: the token predicted; the one that follows `position`, or at the end of the prompt
            the most likely one, when None.
        objective: a row of `OBJECTIVES`.
        heads: retrieval heads, to be marked among the carriers.
        n_features: re-activated features whose heads are traced, by size of attribution.
        n_exact: features that are ablated, half of them re-activated, half new, the largest of
            each by attribution. In bfloat16 logits come in steps
            of about 1/128 of their size, and small effects round to 0: use float32 for these.
        skip_first: positions read over: the first is an attention sink.
        left_out: features not looked at, such as those that fire nearly everywhere.

    Raises:
        PromptError: a position outside the prompt, or too short a prompt.
        ResultError, SiteError: a transcoder, or a dictionary of another site or model.
        UnknownNameError: no such objective.
    """
    dictionary = dictionary.to(model.device, torch.float32)
    site = _site(model, dictionary)
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES)
    for head in heads or ():
        model.spec.check_head(head)
    asked = _prediction(tokens, position, target, objective, skip_first)
    found = _gradients(model, asked, site)
    aim = asked.target if asked.target is not None else int(found.logits[0].argmax())
    own = np.asarray(asked.tokens)
    z, errors = _encode(dictionary, found, site, skip_first)
    active = _active(dictionary, found.grads[site], z, own, function, skip_first, left_out)
    exact = _ablated(model, dictionary, site, asked, aim, active, n_exact)
    traced = _largest(active, active.sources.nearest >= 0, n_features)
    read = _carried(model, dictionary, site, asked, active, traced)
    marked = tuple(str(h) for h in heads or ())
    about = {
        "model": getattr(model.source, "name", model.spec.architecture),
        "dictionary": dictionary.name, "site": str(site), "layer": site.layer,
        "n_layers": model.spec.n_layers, "d_dict": dictionary.d_dict, "objective": objective,
        "value": found.value, "target": aim, "target_text": _texts(model, [aim])[0],
        "p": float(found.logits[0].softmax(-1)[aim]), "skip_first": skip_first,
        "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    features = _features(active, exact, traced)
    return PromptTrace(
        about, _positions(model, own, function, features, errors), features,
        _heads(active, traced, read, marked), read[0].sum(-1), read[1].sum(-1),
        agreement(active.attribution, exact), marked,
    )  # fmt: skip


def agreement(
    approximate: Float[np.ndarray, " active"], exact: Float[np.ndarray, " active"]
) -> dict[str, float]:
    """Spearman's rho and share of equal signs, over those that were ablated; NaN under 3 of them.

    `exact` is what the objective falls by when the feature is taken away, so that both have the
    same sign where the first-order estimate is right.
    """
    from scipy.stats import spearmanr

    known = np.isfinite(exact)
    a, b = approximate[known], exact[known]
    enough = len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    return {
        "n": float(known.sum()),
        "rho": float(spearmanr(a, b).statistic) if enough else float("nan"),
        "same_sign": float((np.sign(a) == np.sign(b)).mean()) if len(a) else float("nan"),
    }


# -- the model --------------------------------------------------------------------------------


def _gradients(model: "HFModel", asked: _Prediction, site: Site) -> Gradients:
    def value(logits: Tensor, _: Any) -> Tensor:
        aim = asked.target if asked.target is not None else int(logits[0].argmax())
        return asked.objective(logits[0], aim)

    return model.gradients(None, asked.tokens, sites=[site], objective=value)


def _encode(
    dictionary: Dictionary, found: Gradients, site: Site, skip_first: int
) -> tuple[Sparse, Float[np.ndarray, " pos"]]:
    """Active features, and the attribution of what the dictionary does not reconstruct.

    NaN at positions read over: a sink's residual is many times the ordinary, and so is its error.
    """
    x = found.activations[site].to(dictionary.W_enc)
    z = dictionary.encode_sparse(x)
    rest = (x - dictionary.decode_sparse(z)).cpu()
    error = (rest * found.grads[site]).sum(-1).numpy()
    error[:skip_first] = np.nan
    return z, error


def _active(
    dictionary: Dictionary, grad: Tensor, z: Sparse, tokens: np.ndarray, function: np.ndarray,
    skip_first: int, left_out: np.ndarray | None,
) -> _Active:  # fmt: skip
    along = (grad.to(dictionary.W_dec)[z.row] * directions(dictionary, z.feature)).sum(-1)
    attribution = (along * z.value).cpu().numpy()
    position, feature = z.row.cpu().numpy(), z.feature.cpu().numpy()
    kept = position >= skip_first
    if left_out is not None:
        kept &= ~left_out[feature]
    content = ~function[tokens]
    position, feature = position[kept], feature[kept]
    sources = find_sources(position, feature, content, tokens)
    value = z.value.cpu().numpy()[kept]
    return _Active(position, feature, value, attribution[kept], sources, content)


def _ablated(
    model: "HFModel", dictionary: Dictionary, site: Site, asked: _Prediction, aim: int,
    active: _Active, n: int,
) -> Float[np.ndarray, " active"]:  # fmt: skip
    """What the objective falls by without each of the largest re-activated, and new, features."""
    again = active.sources.nearest >= 0
    chosen = np.concatenate([_largest(active, again, n - n // 2), _largest(active, ~again, n // 2)])
    out = np.full(len(active.value), np.nan)
    if not len(chosen):
        return out
    feature = torch.from_numpy(active.feature[chosen]).to(dictionary.W_dec.device)
    written = (
        directions(dictionary, feature).cpu() * torch.from_numpy(active.value[chosen])[:, None]
    )
    edits = [
        Edit(site, "add", -v, rows=(1 + r,), positions=(int(active.position[i]),))
        for r, (i, v) in enumerate(zip(chosen, written, strict=True))
    ]
    logits = model.extend(None, [asked.tokens] * (1 + len(edits)), edits=edits).logits
    score = asked.score(logits, aim).numpy()
    out[chosen] = score[0] - score[1:]
    return out


def _carried(
    model: "HFModel", dictionary: Dictionary, site: Site, asked: _Prediction, active: _Active,
    traced: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Contributions and weights `[layer, head, pair, slot]`, whole contributions, sources."""
    n_layers = site.layer + LAYERS_BELOW[site.kind]
    places = source_positions(
        active.position, active.feature, active.content, chosen=traced, most=MOST_SOURCES
    )
    if not len(traced) or not n_layers:
        empty = np.zeros((n_layers, model.spec.n_heads, len(traced), places.shape[1]))
        return empty, empty, empty.sum(-1), places
    feature = torch.from_numpy(active.feature[traced]).to(dictionary.W_enc.device)
    read = RowRead(
        (tuple(active.position[traced].tolist()),), keys=(torch.from_numpy(places),),
        directions=dictionary.W_enc[:, feature].T.cpu() * dictionary.scale, peaks=False,
        through_final_norm=False,
    )  # fmt: skip
    rows = model.extend(None, [asked.tokens], read=[read], logits=[()]).rows[0]
    assert rows.toward is not None and rows.at_keys is not None and rows.toward_all is not None
    kept = (rows.toward[:n_layers], rows.at_keys[:n_layers], rows.toward_all[:n_layers])
    toward, weight, whole = (t.numpy() for t in kept)
    return toward, weight, whole, places


def directions(
    dictionary: Dictionary, feature: Int[Tensor, " some"]
) -> Float[Tensor, "some d_model"]:
    """What an activation of 1 of each feature adds to the site."""
    return dictionary.W_dec[feature] / dictionary.scale


# -- tables -----------------------------------------------------------------------------------


def _features(active: _Active, exact: np.ndarray, traced: np.ndarray) -> "pd.DataFrame":
    import pandas as pd

    again = active.sources.nearest >= 0
    return pd.DataFrame({
        "position": active.position, "feature": active.feature, "activation": active.value,
        "kind": np.where(again, REACTIVATED, NEW), "first": active.sources.first,
        "nearest": active.sources.nearest, "n_sources": active.sources.number,
        "other_token": active.sources.other, "attribution": active.attribution, "exact": exact,
        "traced": np.isin(np.arange(len(again)), traced),
    })  # fmt: skip


def _positions(
    model: "HFModel", tokens: np.ndarray, function: np.ndarray, features: "pd.DataFrame",
    errors: np.ndarray,
) -> "pd.DataFrame":  # fmt: skip
    import pandas as pd

    n, at = len(tokens), features["position"].to_numpy()
    again = (features["kind"] == REACTIVATED).to_numpy(float)
    return pd.DataFrame({
        "position": np.arange(n), "token": tokens, "text": _texts(model, tokens),
        "function": function[tokens], "active": np.bincount(at, minlength=n),
        "reactivated": np.bincount(at, again, n).astype(int),
        "attribution": np.bincount(at, features["attribution"], n), "error": errors,
    })  # fmt: skip


def _heads(
    active: _Active, traced: np.ndarray, read: tuple[np.ndarray, ...], retrieval: Sequence[str]
) -> "pd.DataFrame":
    """The heads that bring most to each traced feature, best first, each from its best source."""
    import pandas as pd

    toward, weight, whole, places = read
    rows = []
    for pair, i in enumerate(traced):
        total = toward[:, :, pair].sum(-1)
        for flat in np.argsort(-total, axis=None, kind="stable")[:HEADS_LISTED]:
            layer, head = np.unravel_index(flat, total.shape)
            slot = int(toward[layer, head, pair].argmax())
            rows.append({
                "position": int(active.position[i]), "feature": int(active.feature[i]),
                "source": int(places[pair, slot]), "head": str(Head(int(layer), int(head))),
                "weight": float(weight[layer, head, pair, slot]),
                "contribution": float(total[layer, head]),
                "share": float(total[layer, head] / active.value[i]),
                "whole": float(whole[layer, head, pair]),
                "retrieval": str(Head(int(layer), int(head))) in retrieval,
            })  # fmt: skip
    names = ["position", "feature", "source", "head", "weight", "contribution", "share", "whole",
             "retrieval"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


# -- helpers ----------------------------------------------------------------------------------


def _site(model: "HFModel", dictionary: Dictionary) -> Site:
    check_dictionary(dictionary, model.spec)
    site = dictionary.site
    if dictionary.is_transcoder or site is None or site.kind not in LAYERS_BELOW:
        raise ResultError(
            f"{dictionary.name} is no autoencoder of the residual stream, whose features heads "
            f"write and later layers read; use one at {', '.join(LAYERS_BELOW)}"
        )
    return site


def _prediction(
    tokens: Sequence[int], position: int, target: int | None, objective: str, skip_first: int
) -> _Prediction:
    ids = [int(t) for t in tokens]
    if not -len(ids) <= position < len(ids):
        raise PromptError(f"position {position} is outside a prompt of {len(ids)} tokens")
    end = position % len(ids) + 1
    if end < skip_first + 2:
        raise PromptError(
            f"{end} tokens before the prediction, of which {skip_first} are read over; a trace "
            f"needs {skip_first + 2} or more"
        )
    if target is None and end < len(ids):
        target = ids[end]
    return _Prediction(ids[:end], target, OBJECTIVES[objective][1])


def _largest(active: _Active, among: np.ndarray, n: int) -> Int[np.ndarray, " some"]:
    """The n of largest attribution among some, in order of place."""
    index = np.flatnonzero(among)
    order = np.argsort(-np.abs(active.attribution[index]), kind="stable")[:n]
    return np.sort(index[order])


def _texts(model: "HFModel", ids: Sequence[int] | np.ndarray) -> list[str]:
    if model.tokenizer is None:
        return [f"<{int(i)}>" for i in ids]
    return token_text(model.tokenizer, [int(i) for i in ids])
