"""A question laid out so that the needle itself can be patched: the suffix begins at the needle.

For patching inside the context the shared prefix ends where the needle begins; from there on the
original and its twin, which states another value, have their tokens at the same positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.cases import Case, Scene

CLASSES = ("value", "needle", "context", "template", "question", "cue", "answer")
"""Position classes, in the order in which a question meets them."""


@dataclass(frozen=True, eq=False)
class Spread:
    """A case from its needle on.

    Attributes:
        before: tokens up to the needle, the same in original and twin.
        tokens, twin: tokens from the needle on; the answer is that of the original in both.
        classes: position class of each.
        rows: positions that produce the answer.
    """

    case: Case
    before: tuple[int, ...]
    tokens: tuple[int, ...]
    twin: tuple[int, ...]
    classes: tuple[str, ...]
    rows: range

    @property
    def positions(self) -> dict[str, tuple[int, ...]]:
        """Positions of each class that occurs, in the order of `CLASSES`."""
        found = {c: tuple(i for i, x in enumerate(self.classes) if x == c) for c in CLASSES}
        return {c: p for c, p in found.items() if p}


def spreads(scenes: Sequence[Scene]) -> list[Spread]:
    """Every case that has a twin."""
    return [_spread(scene, case) for scene in scenes for case in scene.cases if case.twin]


def _spread(scene: Scene, case: Case) -> Spread:
    start, stop = case.needle.start, case.trial.length
    context = scene.context.tokens
    twin = list(context[start:stop])
    for i in case.value:
        twin[i - start] = scene.twin[i]
    classes = [
        "value" if i in case.value else "needle" if i in case.needle else "context"
        for i in range(start, stop)
    ]
    shift = stop - start
    return Spread(
        case,
        tuple(context[:start]),
        (*context[start:stop], *case.suffix),
        (*twin, *case.suffix),
        (*classes, *case.classes),
        range(case.rows.start + shift, case.rows.stop + shift),
    )
