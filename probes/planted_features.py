"""Worlds of tokens and features whose truth is known: no model, no dictionary, plain arrays.

Documents hold common tokens at the same rate everywhere and content tokens in bursts, by topic;
a Zipf law overall. Features fire by a rule of the world's own. A measure of token hubs has to find
those of `hubs` at every frequency, and none where only frequency, or only the document, matters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.errors import UnknownNameError

N_TOPICS = 8
COMMON = 24
"""Tokens 0 to 23 are common: spread evenly, and about 40 % of all positions."""


@dataclass(frozen=True)
class World:
    """A rule by which features fire, and what is true in it.

    Attributes:
        blind: no feature looks at the token, so that any hub named is false.
        wider: the common tokens reach more features than others at equal occurrences.
        hubs: which tokens do, by rank of frequency.
    """

    name: str
    title: str
    blind: bool
    wider: bool
    hubs: tuple[int, ...] = ()


RARE = (40, 70, 110)
WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("null", "features fire at their own rates, blind to the token", True, False),
        World("bursty", "features fire by the document's topic, blind to the token", True, False),
        World("hubs", "common tokens and three rare ones widen many features", False, True,
              (*range(COMMON), *RARE)),
        World("rare hubs", "three content tokens widen many features", False, False, RARE),
        World("degree", "tokens own features in numbers from a power law", False, False),
        World("single", "every token owns as many features, and no other fires", False, False),
    )
}  # fmt: skip

SLOPE = 2.5
"""Exponent of the number of features of a token in the world `degree`: P(k) ~ k^-2.5, from 4 on."""
FEWEST = 4
LIFT, LIFTED = 4.0, 0.5
"""How much more often a hub fires features, and which share of them."""


@dataclass(frozen=True, eq=False)
class PlantedFeatures:
    """Text and firings of a world.

    Attributes:
        tokens, document: token at each position, and its document; documents follow each other.
        row, feature, value: position, feature and activation of all that fired, by position.
        common: tokens that are common in this world.
        degree: features that each token owns (worlds `degree` and `single`), else zeros.
    """

    world: World
    tokens: Int[np.ndarray, " pos"]
    document: Int[np.ndarray, " pos"]
    row: Int[np.ndarray, " active"]
    feature: Int[np.ndarray, " active"]
    value: Float[np.ndarray, " active"]
    n_tokens: int
    n_features: int
    common: Int[np.ndarray, " some"]
    degree: Int[np.ndarray, " token"]


@dataclass(frozen=True, eq=False)
class _Draws:
    """Randomness of the world itself, and of a sample from it."""

    world: np.random.Generator
    sample: np.random.Generator


@dataclass(frozen=True, eq=False)
class _Text:
    tokens: np.ndarray
    document: np.ndarray
    topic: np.ndarray  # of each position


def plant(
    name: str,
    *,
    seed: int,
    sample: int = 0,
    n_documents: int = 240,
    length: int = 200,
    n_tokens: int = 300,
    n_features: int = 1000,
    active: float = 8.0,
) -> PlantedFeatures:
    """Text and firings of a world; `active` features fire at a position on average.

    `seed` draws the world: rates, topics, hubs' features, degrees. `sample` draws documents from
    it and what fires there, so that the spread of a measure over samples can be known.

    Raises:
        UnknownNameError: no such world.
    """
    if name not in WORLDS:
        raise UnknownNameError("planted world", name, WORLDS)
    draws = _Draws(np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1, sample]))
    rates = draws.world.lognormal(0, 1.5, n_features)
    rates = np.minimum(rates / rates.sum() * active, 0.5)
    text = _text(draws, n_documents, length, n_tokens)
    degree = np.zeros(n_tokens, np.int64)
    if name in ("degree", "single"):
        degree = _degrees(draws, n_tokens, n_features, equal=name == "single")
        row, feature = _owned(draws, text, degree, n_features)
    else:
        row, feature = FIRINGS[name](draws, text, rates)
    value = draws.sample.lognormal(0, 0.5, len(row))
    return PlantedFeatures(
        WORLDS[name], text.tokens, text.document, row, feature, value,
        n_tokens, n_features, np.arange(COMMON), degree,
    )  # fmt: skip


Fired = tuple[Int[np.ndarray, " active"], Int[np.ndarray, " active"]]
Firing = Callable[[_Draws, _Text, np.ndarray], Fired]


# -- text -------------------------------------------------------------------------------------


def _text(draws: _Draws, n_documents: int, length: int, n_tokens: int) -> _Text:
    """Zipf overall; content tokens in bursts, and each in documents of its own topic mostly."""
    zipf = 1 / (np.arange(n_tokens) + 2.7)
    common = zipf[:COMMON] / zipf[:COMMON].sum() * 0.4
    content = zipf[COMMON:]
    home = draws.world.integers(N_TOPICS, size=len(content))
    rng = draws.sample
    topic = rng.integers(N_TOPICS, size=n_documents)
    shares = np.empty((n_documents, n_tokens))
    shares[:, :COMMON] = common
    burst = rng.gamma(0.3, 1 / 0.3, (n_documents, len(content)))
    own = content * burst * np.where(home == topic[:, None], 6.5, 0.2)
    shares[:, COMMON:] = 0.6 * own / own.sum(1, keepdims=True)
    edges = np.cumsum(shares, axis=1)
    drawn = rng.random((n_documents, length))
    tokens = np.stack([np.searchsorted(e / e[-1], d) for e, d in zip(edges, drawn, strict=True)])
    document = np.repeat(np.arange(n_documents), length)
    return _Text(tokens.ravel(), document, np.repeat(topic, length))


# -- firings ----------------------------------------------------------------------------------


def _fire(
    rng: np.random.Generator, places: np.ndarray, rates: np.ndarray, n_features: int
) -> np.ndarray:
    """Keys position * features + feature, each feature firing at its rate at these places."""
    n = rng.binomial(len(places), rates)
    feature = np.repeat(np.arange(n_features), n)
    return np.unique(rng.choice(places, len(feature)) * n_features + feature)


def _split(keys: list[np.ndarray], n_features: int) -> Fired:
    """Positions and features, in order of position."""
    key = np.unique(np.concatenate(keys))
    return key // n_features, key % n_features


def _blindly(draws: _Draws, text: _Text, rates: np.ndarray) -> Fired:
    return _split([_fire(draws.sample, np.arange(len(text.tokens)), rates, len(rates))], len(rates))


def _by_topic(draws: _Draws, text: _Text, rates: np.ndarray) -> Fired:
    """A feature fires some thirty times as often in documents of its topic as elsewhere."""
    home = draws.world.integers(N_TOPICS, size=len(rates))
    keys = []
    for topic in range(N_TOPICS):
        lifted = np.minimum(rates * np.where(home == topic, 6.5, 0.2), 0.9)
        places = np.flatnonzero(text.topic == topic)
        keys.append(_fire(draws.sample, places, lifted, len(rates)))
    return _split(keys, len(rates))


def _with_hubs(hubs: tuple[int, ...]) -> Firing:
    def firing(draws: _Draws, text: _Text, rates: np.ndarray) -> Fired:
        rest = np.flatnonzero(~np.isin(text.tokens, hubs))
        keys = [_fire(draws.sample, rest, rates, len(rates))]
        for hub in hubs:
            lifted = rates * np.where(draws.world.random(len(rates)) < LIFTED, LIFT, 1)
            places = np.flatnonzero(text.tokens == hub)
            keys.append(_fire(draws.sample, places, np.minimum(lifted, 0.9), len(rates)))
        return _split(keys, len(rates))

    return firing


def _degrees(
    draws: _Draws, n_tokens: int, n_features: int, *, equal: bool
) -> Int[np.ndarray, " token"]:
    if equal:
        return np.full(n_tokens, n_features // n_tokens)
    sizes = np.arange(FEWEST, n_features // 2)
    law = sizes**-SLOPE
    return draws.world.choice(sizes, n_tokens, p=law / law.sum())


def _owned(draws: _Draws, text: _Text, degree: np.ndarray, n_features: int) -> Fired:
    """Each feature that a token owns fires at 30 % of its occurrences."""
    deck = draws.world.permutation(n_features)
    ends = np.cumsum(degree)
    keys = []
    for token, (end, size) in enumerate(zip(ends, degree, strict=True)):
        places = np.flatnonzero(text.tokens == token)
        rates = np.zeros(n_features)
        rates[deck[np.arange(end - size, end) % n_features]] = 0.3
        if len(places):
            keys.append(_fire(draws.sample, places, rates, n_features))
    return _split(keys, n_features)


FIRINGS: dict[str, Firing] = {
    "null": _blindly,
    "bursty": _by_topic,
    "hubs": _with_hubs(WORLDS["hubs"].hubs),
    "rare hubs": _with_hubs(WORLDS["rare hubs"].hubs),
}
"""How features fire, where tokens own none."""
