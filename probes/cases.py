"""Questions with a known answer and a counterfactual: what ablation and patching are run on.

A scene is a context and its twin, in which every needle states another of its values. The twin has
the same tokens at the same positions but for the values, so that an activation of one can stand in
the other. A case is one question of a scene, with its answer forced behind it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probes.format import Format
from probes.grid import Context, Planted, Trial
from probes.needle import NeedleTokens, tokenise

SUFFIX_CLASSES = ("template", "question", "cue", "answer")
CONTEXT_CLASSES = ("context", "needle", "value")
"""Position classes: before the question, and from it on."""


@dataclass(frozen=True, eq=False)
class Case:
    """One question.

    Attributes:
        suffix: tokens behind the context: the question, the cue, the answer but its last token.
        rows: positions in `suffix` that produce the answer's tokens.
        other: a counterfactual answer; None where the needle has no other value.
        differs: index of the first answer token in which the two differ.
        twin: the twin context states `other`, token for token in the place of the answer.
        classes: the position class of every token of `suffix`.
        needle, value: absolute positions in the context.
    """

    trial: Trial
    suffix: tuple[int, ...]
    rows: range
    other: tuple[int, ...] | None
    differs: int | None
    twin: bool
    classes: tuple[str, ...]
    needle: range
    value: range

    @property
    def answer(self) -> tuple[int, ...]:
        """Tokens of the answer."""
        return self.trial.answer


@dataclass(frozen=True, eq=False)
class Scene:
    """A context, its twin, and the questions asked of both."""

    context: Context
    twin: tuple[int, ...]
    cases: tuple[Case, ...]


def scenes(
    contexts: Sequence[Context], trials: Sequence[Sequence[Trial]], *, fmt: Format
) -> tuple[Scene, ...]:
    """A scene for each context; a needle is asked once, at the first of its trials."""
    return tuple(_scene(c, group, fmt) for c, group in zip(contexts, trials, strict=True))


def _scene(context: Context, trials: Sequence[Trial], fmt: Format) -> Scene:
    swapped = [_swap(p, fmt.tokenizer) for p in context.planted]
    twin = list(context.tokens)
    for place, other in zip(context.planted, swapped, strict=True):
        # the last needles may have been cut off with the end of the context
        if other is not None and place.stop <= len(twin):
            twin[place.start : place.stop] = other.ids
    asked: dict[int, Trial] = {}
    for trial in trials:
        asked.setdefault(trial.planted, trial)
    cases = tuple(_case(t, context.planted[i], swapped[i], fmt) for i, t in sorted(asked.items()))
    return Scene(context, tuple(twin), cases)


def _values(place: Planted, tokenizer: Any) -> Iterator[NeedleTokens]:
    """The needle's other values, from the one after its own, tokenised in its sentence."""
    values = place.needle.values
    start = values.index(place.value)
    for i in range(1, len(values)):
        yield tokenise(place.needle, values[(start + i) % len(values)], tokenizer)


def _swap(place: Planted, tokenizer: Any) -> NeedleTokens | None:
    """Another value that differs in the answer's tokens alone, one for one."""
    mine, span = place.tokens, place.tokens.answer
    for other in _values(place, tokenizer):
        same_shape = len(other.ids) == len(mine.ids) and other.answer == span
        if not same_shape or other.answer_ids == mine.answer_ids:
            continue
        around = [i for i in range(len(mine.ids)) if i not in span]
        if all(other.ids[i] == mine.ids[i] for i in around):
            return other
    return None


def _case(trial: Trial, place: Planted, swapped: NeedleTokens | None, fmt: Format) -> Case:
    other = swapped or next(
        (o for o in _values(place, fmt.tokenizer) if _difference(trial.answer, o.answer_ids)
         is not None), None,
    )  # fmt: skip
    suffix = (*trial.suffix, *trial.answer[:-1])
    rows = range(len(trial.suffix) - 1, len(suffix))
    n_tail = len(fmt.tail(place.needle.question).tokens)
    classes = tuple(
        "answer" if i in rows
        else "question" if i in trial.question
        else "template" if i < n_tail
        else "cue"
        for i in range(len(suffix))
    )  # fmt: skip
    return Case(
        trial, suffix, rows,
        None if other is None else other.answer_ids,
        None if other is None else _difference(trial.answer, other.answer_ids),
        swapped is not None, classes, range(place.start, place.stop), place.answer,
    )  # fmt: skip


def _difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
