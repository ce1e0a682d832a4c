"""Are features at function tokens used for the next token more than features at content tokens?

arXiv 2510.08203 steers at the last token alone, which is a function token and the last one at
once. Here class and distance are apart: in one context, features are taken away at a function
token and at a content token that stand (nearly) equally far from the prediction, and at a random
one. What is taken away keeps its size: the controls are random directions of the same length, and
the decoder directions of other features that fire about as often. What the dictionary does not
reconstruct stays in place.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.effect_plan import DISTANCES, EffectSettings
from circuits.feature_controls import Frequencies, as_long, random_direction
from circuits.shelf import Shelf
from interp.errors import PromptError
from interp.sites import Edit
from interp.trace import SiteRead
from probes.features import Dictionary, Sparse

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Trial:
    """A prediction in its context, and places by (place, distance) inside it."""

    document: int
    tokens: tuple[int, ...]
    answer: int
    places: dict[tuple[str, str], int]


def find_trials(
    texts: Iterator[tuple[int, Sequence[int]]],
    function: np.ndarray,
    settings: EffectSettings,
) -> list[Trial]:
    """Predictions of content tokens, with places of both classes at every distance.

    Args:
        texts: documents and windows of tokens.
        function: `[token]` whether a token is a function token.

    Raises:
        PromptError: the text has too few such predictions.
    """
    rng = np.random.default_rng(settings.seed)
    found: list[Trial] = []
    used: dict[int, int] = {}
    for document, tokens in texts:
        for end in range(settings.context, len(tokens) - 1, settings.context):
            if function[tokens[end]] or used.get(document, 0) >= 4:
                continue
            own = tuple(tokens[end - settings.context : end])
            places = _places(own, function, rng)
            if places is not None:
                found.append(Trial(document, own, int(tokens[end]), places))
                used[document] = used.get(document, 0) + 1
            if len(found) == settings.n_trials:
                return found
    if len(found) < 8:
        raise PromptError(
            f"only {len(found)} predictions have function and content tokens at every distance; "
            "give more text"
        )
    return found


def trials_digest(trials: Sequence[Trial]) -> str:
    """Of all that is measured, so that parts made of another text are refused."""
    told = repr([(t.tokens, t.answer, t.places) for t in trials])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def measure_trials(
    model: "HFModel",
    dictionary: Dictionary,
    firing: np.ndarray,
    trials: Sequence[Trial],
    function: np.ndarray,
    settings: EffectSettings,
    *,
    shelf: Shelf,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Log-probabilities of every trial: as it is, changed at each place, and under controls.

    Rows: trial, document, place, distance, tokens apart, removed (length of what was taken away),
    baseline, treated, and the draws of each control.
    """
    rows: list[dict[str, Any]] = []
    often = Frequencies.of(firing)
    for i, trial in enumerate(trials):
        part = shelf.kept_rows(
            f"trial-{i:04}",
            partial(_one, model, dictionary, often, trial, i, function, settings),
        )
        rows += part
        if progress is not None:
            progress(i + 1, len(trials), "")
    return rows


# -- one trial --------------------------------------------------------------------------------


def _one(
    model: "HFModel", dictionary: Dictionary, often: Frequencies, trial: Trial, number: int,
    function: np.ndarray, settings: EffectSettings,
) -> list[dict[str, Any]]:  # fmt: skip
    site = dictionary.site
    assert site is not None
    everywhere = tuple(range(len(trial.tokens)))
    read = SiteRead((site,), (everywhere,))
    x = model.extend(None, [trial.tokens], read=[read], logits=[()]).sites[site].float()
    z = dictionary.encode_sparse(x.to(model.device))
    rng = np.random.default_rng([settings.seed, number])
    jobs: list[tuple[str, str, int, list[Tensor]]] = []
    for (place, distance), p in trial.places.items():
        chosen = _chosen(z, p, trial.tokens, function, settings.what)
        own = _direction(dictionary, chosen)
        if own is not None:
            controls = [random_direction(own, rng) for _ in range(settings.draws)]
            controls += [
                _matched(dictionary, chosen, often, own, rng) for _ in range(settings.draws)
            ]
            jobs.append((place, distance, p, [own, *controls]))
    edits = [
        Edit(site, "add", -v, rows=(1 + row,), positions=(p,))
        for row, (p, v) in enumerate((p, v) for _, _, p, vs in jobs for v in vs)
    ]
    values = _log_probs(model, trial, edits)
    rows, at = [], 1
    for place, distance, p, vectors in jobs:
        own_values = values[at : at + len(vectors)]
        at += len(vectors)
        n = settings.draws
        rows.append({
            "trial": number, "document": trial.document, "place": place, "distance": distance,
            "apart": len(trial.tokens) - 1 - p, "removed": float(vectors[0].norm()),
            "baseline": float(values[0]), "treated": float(own_values[0]),
            "random direction": own_values[1 : 1 + n].tolist(),
            "matched features": own_values[1 + n :].tolist(),
        })  # fmt: skip
    return rows


def _log_probs(model: "HFModel", trial: Trial, edits: Sequence[Edit]) -> Float[np.ndarray, " row"]:
    """Log-probability of the answer: unchanged, then under each edit, in a row of its own."""
    first = min(e.positions[0] for e in edits if e.positions) if edits else len(trial.tokens) - 1
    first = max(1, first)
    prefix = model.prefill(trial.tokens[:first])
    suffix = list(trial.tokens[first:])
    moved = [replace(e, positions=(e.positions[0] - first,)) for e in edits if e.positions]
    out = model.extend(prefix, [suffix] * (1 + len(edits)), edits=moved)
    found: np.ndarray = out.logits.log_softmax(-1)[:, trial.answer].numpy()
    return found


def _chosen(
    z: Sparse, place: int, tokens: Sequence[int], function: np.ndarray, what: str
) -> tuple[Tensor, Tensor]:
    """Features to take away at a place, and their activations."""
    here = z.row == place
    feature, value = z.feature[here], z.value[here]
    if what == "top" and len(value):
        best = value.argmax()
        return feature[best : best + 1], value[best : best + 1]
    if what == "reactivated":
        content = torch.tensor([not function[t] for t in tokens], device=z.row.device)
        before = z.feature[(z.row < place) & content[z.row]]
        again = torch.isin(feature, before)
        return feature[again], value[again]
    return feature, value


def _direction(dictionary: Dictionary, chosen: tuple[Tensor, Tensor]) -> Tensor | None:
    feature, value = chosen
    if not len(feature):
        return None
    out: Tensor = value.to(dictionary.W_dec) @ dictionary.W_dec[feature] / dictionary.scale
    return out.float().cpu()


def _matched(
    dictionary: Dictionary, chosen: tuple[Tensor, Tensor], often: Frequencies, own: Tensor,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Other features that fire about as often in their place, scaled to the same length."""
    width = max(8, len(often.order) // 50)
    others = [rng.choice(often.near(f, width=width)) for f in chosen[0].tolist()]
    feature = torch.tensor(others, device=chosen[0].device)
    other = _direction(dictionary, (feature, chosen[1]))
    assert other is not None
    return as_long(other, own)


def _places(
    tokens: Sequence[int], function: np.ndarray, rng: np.random.Generator
) -> dict[tuple[str, str], int] | None:
    """Places for every distance, or None; function and content token as near as can be."""
    places: dict[tuple[str, str], int] = {}
    last = len(tokens) - 1
    for name, (nearest, farthest) in DISTANCES.items():
        span = [last - d for d in range(nearest, farthest + 1)]
        here = {True: [p for p in span if function[tokens[p]]],
                False: [p for p in span if not function[tokens[p]]]}  # fmt: skip
        if not here[True] or not here[False]:
            return None
        pairs = [(abs(f - c), f, c) for f in here[True] for c in here[False]]
        least = min(p[0] for p in pairs)
        best = [p for p in pairs if p[0] == least]
        _, f, c = best[int(rng.integers(len(best)))]
        places["function", name], places["content", name] = f, c
        places["random", name] = int(rng.choice(span))
    return places
