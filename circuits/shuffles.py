"""Token labels permuted within documents: the null under which only a token's documents matter.

A token that stands in documents of one topic meets the features of that topic, whatever it is. If
labels are permuted within each document, every token keeps its number of occurrences and its
documents, and loses its own positions: degrees counted from the permuted labels are what spread,
burstiness and topic give by themselves. Counted beside the true labels, at the same positions.
"""

import numpy as np
from jaxtyping import Int


def shuffled_within(
    tokens: Int[np.ndarray, " pos"], document: Int[np.ndarray, " pos"], *, seed: int
) -> Int[np.ndarray, " pos"]:
    """The tokens in a random order within each document.

    `document` need not be sorted; a window or a batch may stand for it, which is a finer null.
    """
    rng = np.random.default_rng(seed)
    places = np.argsort(document, kind="stable")
    order = np.lexsort((rng.random(len(tokens)), document))
    out = np.empty_like(tokens)
    out[places] = tokens[order]
    return out
