"""Sentences between the groups of a binding context: longer inputs, with or without competitors.

`plain` filler holds no entity, as published (arXiv 2510.06182 pads up to 10,000 tokens so); the
main criticism of that is that nothing in it competes. `competing` filler names entities of the
task's own pools that no group holds, in clauses that bind nothing.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from probes.binding_tasks import BindingTask

_WHEN = (
    "After a while", "By then", "For some time", "Later on", "Meanwhile", "Not long after that",
    "On that day", "Once more", "Quite often", "Some time ago", "Soon enough", "As usual",
    "At that point", "Before long", "In the end", "Now and then",
)  # fmt: skip
_WHAT = (
    "nothing much happened", "everybody waited in silence", "it became a little colder",
    "the rain stopped for good", "there was no news at all", "people talked about the weather",
    "things went on as before", "the days grew shorter", "nobody paid any attention",
    "it was very quiet outside", "the wind became stronger", "all of it was soon forgotten",
    "most of them felt tired", "no one knew what would come next", "it took longer than planned",
    "everyone was in a good mood",
)  # fmt: skip
_COMPETING = (
    "somebody mentioned {}", "there was some talk about {}", "nobody had thought of {}",
    "a story about {} made the rounds",
)  # fmt: skip
KINDS = ("plain", "competing")


def filler(
    task: BindingTask, matrix: Sequence[Sequence[str]], *, gaps: int, sentences: int, kind: str
) -> tuple[str, ...]:
    """Text for each gap between groups: `sentences` sentences; nothing at all when 0.

    Drawn by the words of the matrix, whatever their order, so that a donor that only moves them
    has its recipient's filler. Competing filler names none of them.
    """
    if sentences == 0:
        return ()
    taken = {word for row in matrix for word in row}
    rng = np.random.default_rng([zlib.crc32(" ".join(sorted(taken)).encode()), gaps, sentences])
    words = [w for pool in task.pools.values() for w in pool if w not in taken]
    texts = []
    for _ in range(gaps):
        picked = [_sentence(rng, words if kind == "competing" else []) for _ in range(sentences)]
        texts.append(" ".join(picked))
    return tuple(texts)


def _sentence(rng: np.random.Generator, words: Sequence[str]) -> str:
    when = str(rng.choice(_WHEN))
    what = str(rng.choice(_COMPETING)).format(rng.choice(words)) if words else rng.choice(_WHAT)
    return f"{when}, {what}."
