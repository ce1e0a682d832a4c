"""What a scan will ask, decided and counted before anything runs."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from interp.errors import PromptError
from probes.format import Format, Style, prompt_format
from probes.grid import Context, Mode, plant, positions, trials
from probes.haystack import check_repetition, cut, load_text
from probes.needle import load_needles, select, spread, tokenise

if TYPE_CHECKING:
    from interp.backends.hf import HFModel
    from probes.grid import Trial

DEFAULT_LONGEST = 4096
ROOM = 160
"""Tokens kept free behind a context, for question, answer and a generated continuation."""


@dataclass(frozen=True)
class ScanSettings:
    """Everything that decides a scan's numbers; saved with it.

    Attributes:
        lengths: tokens of context; empty means four, halving from the longest that the model
            and 4,096 allow.
        depths: where the needle begins, as a share of the room.
        n_haystacks: contexts at most; the scan stops earlier when the top set is settled.
        mode: `shared` plants the needles of a whole grid in one context; `single` reads one
            context for every cell, with one needle in it.
        cue_words: words of the needle before its value that open the answer (0: none).
        needles, haystack: files of your own, empty for ours.
        top, threshold: k of the top set, and the score it is usual to call a head retrieving at.
        attention: trials, one a cell of the grid at most, whose attention rows are kept for looking
            at (0: none).
        stop_early: stop when the top set is settled, after `min_haystacks`.
    """

    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    n_haystacks: int = 6
    mode: Mode = "shared"
    style: Style = "auto"
    cue_words: int = 3
    needles: str = ""
    kinds: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    haystack: tuple[str, ...] = ()
    top: int = 10
    threshold: float = 0.1
    generate: bool = True
    stop_early: bool = True
    min_haystacks: int = 3
    attention: int = 20
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for result files."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class ScanPlan:
    """Contexts and trials of a scan. `warnings` are for the user to read before the run."""

    settings: ScanSettings
    lengths: tuple[int, ...]
    fmt: Format
    contexts: tuple[Context, ...]
    trials: tuple[tuple["Trial", ...], ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def n_trials(self) -> int:
        """Trials in all, if nothing stops early."""
        return sum(map(len, self.trials))

    @property
    def n_tokens(self) -> int:
        """Tokens that pass through the model, contexts and suffixes."""
        asked = sum(len(t.suffix) + len(t.answer) for group in self.trials for t in group)
        # kept trials are asked twice more, and the first one is read once more for its maps
        kept = [t for _, t in self.kept_trials]
        again = sum(2 * (len(t.suffix) + len(t.answer)) for t in kept) + sum(
            t.length for t in kept[:1]
        )
        return asked + again + sum(len(c.tokens) for c in self.contexts)

    @property
    def kept_trials(self) -> list[tuple[int, "Trial"]]:
        """Trials whose attention is kept, each with the place of its context.

        The first of each (length, depth) cell, spread evenly over the cells where fewer are wanted.
        The shortest length comes first, and in it the middle depths.
        """
        cells: dict[tuple[int, float], tuple[int, Trial]] = {}
        for i, group in enumerate(self.trials):
            for trial in group:
                cells.setdefault((trial.length, trial.depth), (i, trial))
        order = sorted(cells, key=lambda c: (c[0], abs(c[1] - 0.5)))
        n = min(self.settings.attention, len(order))
        return [cells[order[i * len(order) // n]] for i in range(n)]


def resolved_lengths(model: "HFModel", settings: ScanSettings) -> tuple[int, ...]:
    """The lengths asked for, checked, or four that halve from the longest that fits.

    Raises:
        PromptError: a length that the model, or a needle, has no room in.
    """
    limit = model.spec.context_length
    if not settings.lengths:
        longest = DEFAULT_LONGEST if limit is None else min(DEFAULT_LONGEST, limit - ROOM)
        return tuple(sorted({max(128, longest // 2**i) for i in range(4)}))
    lengths = tuple(sorted(set(settings.lengths)))
    if lengths[0] < 64:
        raise PromptError(f"length {lengths[0]} leaves no room for a needle; use 64 or more")
    if limit is not None and lengths[-1] + ROOM > limit:
        raise PromptError(
            f"length {lengths[-1]} does not fit: this model's context is {limit} tokens, "
            f"{ROOM} of them are for question and answer; use at most {limit - ROOM}"
        )
    return lengths


def make_plan(
    model: "HFModel", settings: ScanSettings, *, only: Collection[str] | None = None
) -> ScanPlan:
    """Load texts and needles, cut haystacks, plant, and write out every trial.

    `only` names the needles that may be used, by id (all when None).

    Raises:
        PromptError, UnknownNameError: see the parts; all before the model runs.
    """
    if settings.n_haystacks < 1 or not settings.depths:
        raise PromptError("a scan needs at least one haystack and one depth")
    if not all(0 <= d <= 1 for d in settings.depths):
        raise PromptError(f"depths lie between 0 and 1, got {settings.depths}")
    lengths = resolved_lengths(model, settings)
    fmt = prompt_format(model.tokenizer, settings.style)
    docs = load_text(settings.haystack or None)
    repeated = check_repetition(docs).warning
    needles, longest = _placeable(model, settings, only)
    at = positions(lengths, settings.depths, n_head=len(fmt.head), n_needle=longest)
    groups = _groups(needles, len(at), settings)
    stacks = cut(
        docs, model.tokenizer, n_haystacks=len(groups), n_tokens=lengths[-1], seed=settings.seed
    )
    contexts = [
        plant(
            stack, group, at, fmt=fmt, index=i, n_tokens=lengths[-1], seed=settings.seed,
            similarity=near,
        )
        for i, (stack, (group, near)) in enumerate(zip(stacks, groups, strict=True))
    ]  # fmt: skip
    asked = [
        tuple(trials(c, lengths, settings.depths, fmt=fmt, cue_words=settings.cue_words))
        for c in contexts
    ]
    if settings.mode == "single":
        contexts, asked = _single(stacks, contexts, asked, fmt, settings)
    warnings = () if repeated is None else (repeated,)
    return ScanPlan(settings, lengths, fmt, tuple(contexts), tuple(asked), warnings)


def _placeable(
    model: "HFModel", settings: ScanSettings, only: Collection[str] | None
) -> tuple[list, int]:
    """Needles of the kinds asked for, and the length in tokens of the longest."""
    needles = load_needles(settings.needles or None)
    needles = tuple(n for n in needles if only is None or n.id in only)
    languages = settings.languages if not settings.needles else ()
    kept = select(
        needles,
        sum(_matches(n, settings.kinds, languages) for n in needles) or 1,
        seed=settings.seed,
        kinds=settings.kinds or None,
        languages=languages or None,
    )
    sizes = [max(len(tokenise(n, v, model.tokenizer).ids) for v in n.values) for n in kept]
    return list(kept), max(sizes)


def _matches(needle: Any, kinds: Sequence[str], languages: Sequence[str]) -> bool:
    return (not kinds or needle.kind in kinds) and (not languages or needle.language in languages)


def _groups(needles: list, size: int, settings: ScanSettings) -> list[tuple[tuple, tuple]]:
    """For each haystack `size` unlike needles; needles come again only when all were used."""
    if size > len(needles):
        raise PromptError(
            f"{size} needles share a haystack, but there are only {len(needles)}; "
            "ask for fewer lengths or depths, or for more needles"
        )
    out: list[tuple[tuple, tuple]] = []
    per_round = max(1, len(needles) // size)
    while len(out) < settings.n_haystacks:
        n = min(per_round, settings.n_haystacks - len(out))
        chosen = select(needles, n * size, seed=settings.seed + len(out))
        for group in spread(chosen, n, seed=settings.seed + len(out)):
            out.append((group.needles, group.similarity))
    return out


def _single(
    stacks: Sequence, contexts: list[Context], asked: list, fmt: Format, settings: ScanSettings
) -> tuple[list[Context], list]:
    """One context for every cell, holding the cell's needle alone."""
    alone, questions = [], []
    for stack, context, group in zip(stacks, contexts, asked, strict=True):
        for trial in group:
            place = context.planted[trial.planted]
            start = place.start if trial.depth < 1 else trial.length - len(place.tokens.ids)
            one = plant(
                stack, [place.needle], [min(start, trial.length - 2 * len(place.tokens.ids))],
                fmt=fmt, index=context.index, n_tokens=trial.length, seed=settings.seed,
            )  # fmt: skip
            alone.append(one)
            questions.append(
                tuple(trials(one, [trial.length], [trial.depth], fmt=fmt,
                             cue_words=settings.cue_words))
            )  # fmt: skip
    return alone, questions
