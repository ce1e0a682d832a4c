"""What a binding run runs: hearing the model, a sweep over layers, patched questions, heads.

The model is heard in every style of prompt first; if it cannot do the task, nothing follows, so
what follows is not sure. An evaluation is one token above a layer. The layer is found by the run
itself: where none is given, half of the layers stand for it here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from circuits.binding_plan import BindSettings, Study, plan_studies
from circuits.competence import N_NEW, N_TRIED
from circuits.cost import Forward, Sizes, Suffix, extend, generate, grow, prefill
from circuits.interchange import ROWS
from circuits.pricing import Phase, Price

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


@dataclass(frozen=True)
class _Prompt:
    """Tokens that the questions of one context share, tokens of each behind them, and groups."""

    shared: int
    own: int
    n: int


def price_bind(model: "HFModel", sizes: Sizes, settings: BindSettings) -> Price:
    """All studies of the settings; their prompts are written here to be measured.

    Raises:
        PromptError, UnknownNameError: as the run itself would.
    """
    phases: list[Phase] = []
    longest = evaluations = 0
    studies = plan_studies(model.tokenizer, settings)
    for i, study in enumerate(studies):
        written = _prompts(model.tokenizer, study, settings)
        longest = max(longest, *(p.shared + p.own for p in written.values()))
        phases += _study(sizes, settings, written, first_stage=3 * i)
        evaluations += sum(s.evaluations(study.n) for s in _stages(sizes, settings))
    layer = "found" if settings.layer < 0 else str(settings.layer)
    notes = [
        "least: the model cannot do the task (floor "
        f"{settings.floor:g}), and only its answers are heard; most: everything is measured",
        f"not in it: {settings.bootstrap} refits of the mixture a study, which no forward takes "
        "part in",
    ]
    if settings.layer < 0:
        notes.append("the layer is found by the run: half of the layers stand for it here")
    if settings.classics:
        notes.append("not in it: the older measurements (--classics)")
    return Price(
        "bind", tuple(phases), longest,
        counts={
            "studies": len(studies), "groups": list(settings.n), "layer": layer,
            "tokens of a prompt": longest, "entity sets": settings.n_sets,
            "evaluations": evaluations,
        },
        notes=tuple(notes),
        unit="entity sets",
    )  # fmt: skip


def _prompts(tokenizer: Any, study: Study, settings: BindSettings) -> dict[str, _Prompt]:
    """One context of the study in every style that is tried."""
    import numpy as np

    from probes.binding_pairs import Sampler
    from probes.binding_prompts import Writer, shared_start, styles_of

    matrix, _ = Sampler(study.task, study.question, study.n).words(np.random.default_rng(0))
    found = {}
    styles = styles_of(tokenizer) if settings.style == "auto" else (settings.style,)
    for style in styles:
        writer = Writer(
            tokenizer, study.task, study.question, style, study.filler, settings.filler_kind
        )
        asked = [writer.write(matrix, g) for g in range(study.n)]
        start = shared_start(asked)
        own = sum(len(p.tokens) - start for p in asked) / len(asked)
        found[style] = _Prompt(start, round(own), study.n)
    return found


@dataclass(frozen=True)
class _Stage:
    """Entity sets of a stage, donor contexts in each, recipients of a donor's question, layers."""

    name: str
    sets: int
    donors: int
    recipients: int
    layers: tuple[int, ...]

    def evaluations(self, n: int) -> int:
        """Patched questions of all sets, each group asked for in each donor context."""
        return self.sets * self.donors * n * self.recipients * len(self.layers)


def _stages(sizes: Sizes, settings: BindSettings) -> list[_Stage]:
    """What is run when the model can do the task: see `circuits.binding_study`."""
    last = sizes.n_layers
    layer = settings.layer if settings.layer >= 0 else last // 2
    sweep = settings.n_sweep if settings.layer < 0 else 0
    controls = settings.n_controls if settings.controls else 0
    return [
        _Stage("sweep over layers", sweep, 2, 1, tuple(range(last + 1))),
        _Stage("main design", settings.n_sets, settings.donors, settings.n_recipients, (layer,)),
        _Stage("control designs", controls, len(settings.controls), 1,
               tuple(dict.fromkeys((layer, min(layer + 1, last))))),
    ]  # fmt: skip


def _study(
    sizes: Sizes, settings: BindSettings, written: dict[str, _Prompt], *, first_stage: int
) -> Iterable[Phase]:
    """Phases of one study; of the styles tried, the longest stands for the one that is chosen."""
    heard = [f for p in written.values() for f in _heard(sizes, p) * N_TRIED]
    p = max(written.values(), key=lambda q: q.shared + q.own)
    yield Phase("styles heard", tuple(heard))
    yield Phase("preflight", tuple(_heard(sizes, p) * settings.n_preflight))
    stages = _stages(sizes, settings)
    for one in stages:
        work = tuple(_set(sizes, p, one))
        # the main and the control designs do not wait for one another
        number = first_stage + 1 + (one is not stages[0])
        for k in range(one.sets):
            unit = k + settings.n_sets * (one is stages[2])
            yield Phase(one.name, work, unit, sure=False, stage=number)
    if settings.heads:
        layer = stages[1].layers[0]
        yield Phase("heads", tuple(_heads(sizes, p, layer)), None, sure=False)


def _heard(sizes: Sizes, p: _Prompt) -> list[Forward]:
    """All groups of one context asked for: logits, and generated answers."""
    asked = [Suffix(p.own, p.shared)] * p.n
    return [*prefill(p.shared), *extend(sizes, asked), *generate(sizes, asked, N_NEW)]


def _set(sizes: Sizes, p: _Prompt, stage: _Stage) -> Iterable[Forward]:
    """One entity set: donors' states, recipients' questions, and every state put into them."""
    if not stage.sets:
        return
    yield from prefill(p.shared)
    for _ in range(stage.donors):
        yield from prefill(p.shared)
        yield from _asked(sizes, p, p.n, max(stage.layers))
    each = stage.donors * stage.recipients + 1  # every question also gets its own state
    for _ in range(p.n):
        yield from _last_token(p)
        yield from _patched(sizes, p, list(stage.layers) * each)


def _asked(sizes: Sizes, p: _Prompt, n: int, layers: int) -> Iterable[Forward]:
    """Questions of a context, run up to a layer."""
    for one in extend(sizes, [Suffix(p.own, p.shared, logits=0)] * n):
        yield replace(one, layers=layers)


def _last_token(p: _Prompt) -> Iterable[Forward]:
    yield from grow(p.shared, p.own - 1)
    yield Forward(1, p.shared + p.own - 1, logits=1)


def _patched(
    sizes: Sizes, p: _Prompt, layers: Sequence[int], *, head_rows: float = 0
) -> Iterable[Forward]:
    """The last token once for each edit, from its layer on."""
    before, last = p.shared + p.own - 1, sizes.n_layers - 1
    for start in range(0, len(layers), ROWS):
        rows = [
            Suffix(1, before, head_rows=head_rows, edits=1 + head_rows, first=min(layer, last))
            for layer in layers[start : start + ROWS]
        ]
        yield from extend(sizes, rows, shared=len(rows) > 1)


def _heads(sizes: Sizes, p: _Prompt, layer: int) -> Iterable[Forward]:
    """Each head below writes, each head above reads, or as many other tokens: two pairs a set."""
    from circuits.binding_heads import N_PAIRS, N_SETS

    every = [k for k in range(sizes.n_layers) for _ in range(sizes.n_heads)]
    below, above = [k for k in every if k < layer], [k for k in every if k >= layer]
    once = [*_asked(sizes, p, 1, layer), *_last_token(p)]
    once += _patched(sizes, p, [sizes.n_layers, *below])
    for _ in range(2):
        once += _patched(sizes, p, [layer] * (len(above) + 2), head_rows=1)
    yield from (prefill(p.shared) * 2 + once * N_PAIRS) * N_SETS
