"""Steering by features, as in arXiv 2510.08203 (appendix A), with the figures that it leaves out.

The residual after a prompt that forces a trait is decomposed into features, sorted by activation.
The paper searches by bisection for the smallest k of which alpha times the sum gives the trait
where k - 1 does not, and calls the k-th feature the trait's; that success grows with k is assumed.
Here the whole curve over k is measured beside the bisection, every success is a rate with its
interval, and the same is done with random directions, with other features that fire about as
often, and at a content token before the last one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.feature_controls import Frequencies, as_long, random_direction
from circuits.shelf import Shelf
from circuits.statistics import clopper_pearson
from interp.errors import PromptError
from interp.sites import Edit
from interp.trace import Prefix, SiteRead
from probes.beginnings import beginning
from probes.features import Dictionary
from probes.format import encode, prompt_format
from probes.token_classes import INDEX, linguistic_classes

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
TRAIT, TOP, KTH, RANDOM, MATCHED, ELSEWHERE = (
    "whole difference", "top k features", "k-th feature", "random direction", "matched feature",
    "k-th feature, content token",
)  # fmt: skip
ARMS: dict[str, str] = {
    TRAIT: "the residual of the trait prompt is added whole",
    TOP: "alpha times the sum of the k most active features",
    KTH: "alpha times the feature that the bisection ends at",
    RANDOM: "a random direction of the length of the k-th feature's",
    MATCHED: "another feature that fires about as often, same length",
    ELSEWHERE: "the k-th feature at the last content token before the last token",
}
"""What is added, at the last token unless said otherwise."""


@dataclass(frozen=True)
class SteerSettings:
    """What to steer to, and how it is told that it worked.

    Attributes:
        trait: a prompt that forces the trait.
        tests: prompts that do not.
        success: a regular expression that the generated text has to contain.
        alphas: multiples of the features' activations in the trait prompt.
        ks: numbers of features at which the curve is measured.
        max_new_tokens: length of the generated texts.
        draws: random directions, and matched features.
        style: chat or plain prompts; `auto` takes chat where the model has a template.
    """

    trait: str
    tests: tuple[str, ...]
    success: str
    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    max_new_tokens: int = 12
    draws: int = 5
    style: str = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Steering:
    """Rates of success: one row an arm, alpha and k; and what the bisection said.

    `baseline` is the rate without any change; `bisection` for each alpha the k and its feature,
    or None where not even the largest k gives the trait in half of the tests; `monotone` whether
    the measured curve ever falls by more than one test.
    """

    settings: SteerSettings
    baseline: dict[str, Any]
    rows: list[dict[str, Any]]
    bisection: list[dict[str, Any]]
    examples: list[dict[str, str]]


def steer(
    model: "HFModel",
    dictionary: Dictionary,
    settings: SteerSettings,
    *,
    firing: np.ndarray | None = None,
    shelf: Shelf | None = None,
    progress: Progress | None = None,
) -> Steering:
    """Measure how often features of a trait give it where the prompt does not ask for it.

    Args:
        firing: how often each feature fires; without it, matched features are drawn from all.

    Raises:
        PromptError: no or too few tests, a success that is no expression or that most tests show
            unchanged.
    """
    check_steering(settings)
    shelf = shelf or Shelf(None, {})
    scene = _Scene(model, dictionary, settings)
    tick = _Ticker(progress, 2 + len(settings.alphas) * (len(settings.ks) + 3))

    def rate(arm: str, alpha: float, k: int, vectors: Sequence[Tensor]) -> dict[str, Any]:
        def make() -> list[dict[str, Any]]:
            texts = scene.texts(vectors, elsewhere=arm == ELSEWHERE)
            return [_rate(texts, settings, {"arm": arm, "alpha": alpha, "k": k})]

        found = shelf.kept_rows(f"{arm}-{alpha:g}-{k}".replace(" ", "-"), make)[0]
        tick(arm)
        return found

    none = torch.zeros(dictionary.d_out)
    baseline = rate("nothing added", 0.0, 0, [none])
    if baseline["rate"] > 0.5:
        raise PromptError(
            f"{baseline['rate']:.0%} of the tests show the trait without any change: give tests "
            "that do not ask for it, or a narrower --success"
        )
    rows = [rate(TRAIT, 1.0, 0, [scene.trait])]
    bisection = []
    for alpha in settings.alphas:
        curve = [rate(TOP, alpha, k, [scene.top(k) * alpha]) for k in settings.ks
                 if k <= len(scene.order)]  # fmt: skip
        rows += curve
        found = _bisect(partial(_gives, rate, scene, alpha), len(scene.order))
        rates = [r["rate"] for r in curve]
        falls = [a - b for a, b in zip(rates, rates[1:], strict=False)]
        kth = None if found is None else int(scene.order[found - 1])
        bisection.append({
            "alpha": alpha, "k": found, "feature": kth,
            "monotone": max(falls, default=0.0) <= 1 / len(settings.tests) + 1e-9,
        })  # fmt: skip
        if found is None:
            continue
        own = scene.one(found) * alpha
        rows += [
            rate(KTH, alpha, found, [own]),
            rate(RANDOM, alpha, found, scene.random(own)),
            rate(MATCHED, alpha, found, scene.matched(own, int(scene.order[found - 1]), firing)),
            rate(ELSEWHERE, alpha, found, [own]),
        ]
    return Steering(settings, baseline, rows, bisection, scene.examples(rows))


def check_steering(settings: SteerSettings) -> None:
    """Refuse settings that no run could follow.

    Raises:
        PromptError: what is wrong, and what would do.
    """
    if len(settings.tests) < 5 or not all(t.strip() for t in settings.tests):
        raise PromptError(f"{len(settings.tests)} tests tell no rate; give 5 prompts or more")
    if not settings.trait.strip():
        raise PromptError("the trait prompt is empty; give one that forces the trait")
    try:
        re.compile(settings.success)
    except re.error as error:
        raise PromptError(
            f"--success {settings.success!r} is no regular expression ({error})"
        ) from None


class _Scene:
    """The trait's features, and the tests read up to where something is added."""

    def __init__(self, model: "HFModel", dictionary: Dictionary, settings: SteerSettings) -> None:
        self.model, self.dictionary, self.settings = model, dictionary, settings
        site = dictionary.site
        assert site is not None
        self.site = dictionary.out_site or site
        tokens = _prompt(model.tokenizer, settings.trait, settings.style)
        read = SiteRead((site, self.site), ((len(tokens) - 1,),))
        sites = model.extend(None, [tokens], read=[read], logits=[()]).sites
        self.trait = sites[self.site][0].float()
        z = dictionary.encode_sparse(sites[site].float().to(model.device))
        best = z.value.argsort(descending=True, stable=True)
        self.order, self.values = z.feature[best].cpu(), z.value[best].float().cpu()
        if not len(self.order):
            raise PromptError("no feature is active after the trait prompt; try another layer")
        self.rows = (dictionary.W_dec / dictionary.scale).float().cpu()
        self.tests = [_prompt(model.tokenizer, t, settings.style) for t in settings.tests]
        self.rng = np.random.default_rng(settings.seed)
        self.prefixes: dict[tuple[int, ...], Prefix] = {}
        classes = linguistic_classes(model.tokenizer, n_vocab=model.spec.d_vocab)
        self.content = classes == INDEX["content"]

    def top(self, k: int) -> Tensor:
        """Sum of the k most active features."""
        return self.values[:k] @ self.rows[self.order[:k]]

    def one(self, k: int) -> Tensor:
        """The k-th alone."""
        return self.values[k - 1] * self.rows[self.order[k - 1]]

    def random(self, own: Tensor) -> list[Tensor]:
        """Random directions of the same length."""
        return [random_direction(own, self.rng) for _ in range(self.settings.draws)]

    def matched(self, own: Tensor, feature: int, firing: np.ndarray | None) -> list[Tensor]:
        """Other features that fire about as often, at the same length."""
        n = len(self.rows)
        width = n if firing is None else max(2 * self.settings.draws, n // 50)
        often = Frequencies.of(np.zeros(n, int) if firing is None else firing)
        near = often.near(feature, width=width)
        chosen = self.rng.choice(near, min(self.settings.draws, len(near)), replace=False)
        return [as_long(self.rows[f], own) for f in chosen.tolist()]

    def texts(self, vectors: Sequence[Tensor], *, elsewhere: bool = False) -> list[str]:
        """What the model says to every test with each vector added, all vectors in one batch."""
        out = []
        for tokens in self.tests:
            place = self._content_place(tokens) if elsewhere else len(tokens) - 1
            edits = [
                Edit(self.site, "add", vector, rows=(row,), positions=(0,))
                for row, vector in enumerate(vectors)
                if vector.any()
            ]
            said = self.model.generate(
                self._prefix(tuple(tokens[:place])), [tokens[place:]] * len(vectors),
                max_new_tokens=self.settings.max_new_tokens,
                stop=_stops(self.model.tokenizer), edits=edits,
            )  # fmt: skip
            out += [self.model.tokenizer.decode(text) for text in said]
        return out

    def _prefix(self, tokens: tuple[int, ...]) -> Prefix:
        """What stands before the place, read once for all arms."""
        if tokens not in self.prefixes:
            self.prefixes[tokens] = self.model.prefill(tokens)
        return self.prefixes[tokens]

    def _content_place(self, tokens: Sequence[int]) -> int:
        """The last token before the last one that is a word of content."""
        for place in range(len(tokens) - 2, 0, -1):
            if self.content[tokens[place]]:
                return place
        raise PromptError("a test prompt holds no word of content to add the feature at")

    def examples(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
        """The first text of every arm."""
        return [{"arm": f"{r['arm']}, alpha {r['alpha']:g}, k {r['k']}", "text": r["example"]}
                for r in rows]  # fmt: skip


def _prompt(tokenizer: Any, text: str, style: Any) -> list[int]:
    """A chat turn up to where the answer begins, or the bare text."""
    form = prompt_format(tokenizer, style)
    if form.style == "chat":
        return [*form.head, *encode(tokenizer, text + form.after_question)]
    bos = beginning(tokenizer, "auto")
    return [*(() if bos is None else (bos,)), *encode(tokenizer, text)]


class _Ticker:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.total, self.done), what)


def _gives(rate: Callable[..., dict[str, Any]], scene: _Scene, alpha: float, k: int) -> bool:
    return bool(rate(TOP, alpha, k, [scene.top(k) * alpha])["rate"] >= 0.5)


def _bisect(works: Callable[[int], bool], n: int) -> int | None:
    """The paper's search: smallest k at which it works, if success grows with k."""
    if not works(n):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _rate(texts: Sequence[str], settings: SteerSettings, row: dict[str, Any]) -> dict[str, Any]:
    hits = sum(re.search(settings.success, t) is not None for t in texts)
    low, high = clopper_pearson(hits, len(texts))
    return row | {"rate": hits / len(texts), "low": low, "high": high, "n": len(texts),
                  "example": texts[0]}  # fmt: skip


def _stops(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
