"""Run trials off one prefill and turn the rows they show into scores of every head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits import scores
from interp.trace import Prefix, RowRead, RowTrace
from probes.format import Format
from probes.grid import Context, Trial
from probes.needle import tokenise
from probes.rouge import contains, rouge1_recall

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

NULL_QUESTION = "N/A"
ROUGE_PASS = 0.5
"""ROUGE-1 recall above which a generated answer passes, as published."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one trial gave.

    Attributes:
        forced: greedy decoding would give just the gold answer (teacher-forced argmax).
        logprob: log-probability of the gold answer.
        generated: the model's own continuation; the gold answer itself where `forced`.
        exact, rouge: whether the continuation holds the answer; ROUGE-1 recall of the answer.
        scored_on: `gold` or `generated`, the tokens whose rows were scored.
        scores: trial metrics, each `[layer, head]`.
    """

    trial: Trial
    forced: bool
    logprob: float
    generated: str
    exact: bool
    rouge: float
    scored_on: str
    scores: dict[str, np.ndarray]

    @property
    def passed(self) -> bool:
        """The model answers: by the forced test, word for word, or by ROUGE as published."""
        return self.forced or self.exact or self.rouge > ROUGE_PASS


def measure(
    model: "HFModel",
    prefix: Prefix,
    context: Context,
    trials: Sequence[Trial],
    fmt: Format,
    *,
    generate: bool = True,
    n_new: int = 24,
    seed: int = 0,
) -> list[Outcome]:
    """All trials of one context, from the gold answer's rows; failures are generated and redone.

    Where teacher forcing shows that greedy decoding gives the gold answer, nothing is generated:
    the row of each answer token is the row that its decoding step would show.
    """
    rows = _score_rows(model, prefix, context, trials, [()] * len(trials), fmt, seed)
    outcomes = [
        Outcome(
            trial, forced, logprob, trial.value if forced else "", forced, float(forced), "gold",
            values,
        )
        for trial, (forced, logprob, values) in zip(trials, rows, strict=True)
    ]  # fmt: skip
    failed = [i for i, o in enumerate(outcomes) if not o.forced]
    if not generate or not failed:
        return outcomes
    texts = model.generate(
        prefix,
        [trials[i].suffix for i in failed],
        at=[trials[i].length for i in failed],
        max_new_tokens=n_new,
        stop=stop_tokens(model),
    )
    redo, before = [], []
    for i, ids in zip(failed, texts, strict=True):
        outcomes[i] = _with_text(outcomes[i], fmt.tokenizer.decode(ids))
        at = _find(ids, trials[i].answer)
        if outcomes[i].exact and at is not None:
            redo.append(i)
            before.append(tuple(ids[:at]))
    if redo:
        chosen = [trials[i] for i in redo]
        again = _score_rows(model, prefix, context, chosen, before, fmt, seed)
        for i, (_, _, values) in zip(redo, again, strict=True):
            outcomes[i] = _rescored(outcomes[i], values)
    return outcomes


def stop_tokens(model: "HFModel") -> list[int]:
    """Tokens that end an answer: whatever the model's own generation settings name."""
    config = getattr(model.hf, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        ids = model.tokenizer.eos_token_id
    return [i for i in (ids if isinstance(ids, list) else [ids]) if i is not None]


def _with_text(outcome: Outcome, text: str) -> Outcome:
    value = outcome.trial.value
    return Outcome(
        outcome.trial, False, outcome.logprob, text, contains(value, text),
        rouge1_recall(value, text), "gold", outcome.scores,
    )  # fmt: skip


def _rescored(outcome: Outcome, values: dict[str, np.ndarray]) -> Outcome:
    return Outcome(
        outcome.trial, False, outcome.logprob, outcome.generated, outcome.exact, outcome.rouge,
        "generated", values,
    )  # fmt: skip


def _find(ids: Sequence[int], answer: Sequence[int]) -> int | None:
    n = len(answer)
    return next((i for i in range(len(ids) - n + 1) if tuple(ids[i : i + n]) == answer), None)


def _slots(positions: Sequence[range], width: int, n_rows: int) -> Tensor:
    """The same key positions for every row, `[row, width]`, -1 where a needle is shorter."""
    keys = torch.full((width,), -1, dtype=torch.long)
    flat = [p for span in positions for p in span]
    keys[: len(flat)] = torch.tensor(flat)
    return keys.expand(n_rows, -1)


def _score_rows(
    model: "HFModel",
    prefix: Prefix,
    context: Context,
    trials: Sequence[Trial],
    before: Sequence[tuple[int, ...]],
    fmt: Format,
    seed: int,
) -> list[tuple[bool, float, dict[str, np.ndarray]]]:
    """Teacher-force the answers behind what the model said before them, and read their rows.

    An empty question at every length runs along, for the calibration of the query focus.
    """
    asked = [(*t.suffix, *b, *t.answer[:-1]) for t, b in zip(trials, before, strict=True)]
    # the last answer token predicts nothing that is scored
    ends = [len(s) for s in asked]
    answer_rows = [
        tuple(range(end - len(t.answer), end)) for end, t in zip(ends, trials, strict=True)
    ]
    lengths = sorted({t.length for t in trials})
    null = fmt.tail(NULL_QUESTION)
    none: tuple[tuple[int, ...], ...] = ((),) * len(lengths)
    spans = [range(p.start, p.stop) for t in trials for p in [context.planted[t.planted]]]
    every = [range(p.start, p.stop) for p in context.planted]
    width, all_width = max(map(len, spans)), sum(map(len, every))
    answers = RowRead(
        (*answer_rows, *none),
        keys=(
            *(_slots([s], width, len(r)) for s, r in zip(spans, answer_rows, strict=True)),
            *(_slots([], width, 0) for _ in lengths),
        ),
        directions=answer_directions(model, context, trials, seed)
        if model.anatomy.can_write
        else None,
    )
    questions = RowRead(
        (*(tuple(t.question) for t in trials), *none),
        keys=(
            *(_slots([s], width, len(t.question)) for s, t in zip(spans, trials, strict=True)),
            *(_slots([], width, 0) for _ in lengths),
        ),
        peaks=False,
    )
    empty = RowRead(
        ((),) * len(trials) + (tuple(null.question),) * len(lengths),
        keys=(
            *(_slots([], all_width, 0) for _ in trials),
            *(_slots(every, all_width, len(null.question)) for _ in lengths),
        ),
        peaks=False,
    )
    trace = model.extend(
        prefix,
        [*asked, *([null.tokens] * len(lengths))],
        at=[*(t.length for t in trials), *lengths],
        read=[answers, questions, empty],
        logits=[*answer_rows, *none],
    )
    logprobs = trace.logits.log_softmax(-1).split([len(r) for r in answer_rows])
    starts = np.cumsum([0, *map(len, every)])
    out = []
    for i, trial in enumerate(trials):
        at = trace.rows[2].suffix == len(trials) + lengths.index(trial.length)
        weights = trace.rows[2].at_keys
        assert weights is not None
        mean = weights[:, :, at].mean(2).numpy()
        calm = mean[..., starts[trial.planted] : starts[trial.planted + 1]]
        out.append(_one(trial, i, context, trace.rows, logprobs[i], calm))
    return out


def _one(
    trial: Trial,
    index: int,
    context: Context,
    rows: Sequence[RowTrace],
    logprobs: Tensor,
    null: np.ndarray,
) -> tuple[bool, float, dict[str, np.ndarray]]:
    place = context.planted[trial.planted]
    answers, asked = rows[:2]
    mine = answers.suffix == index
    ids = torch.tensor(trial.answer)
    assert answers.argmax is not None
    argmax = answers.argmax[:, :, mine].numpy()
    assert answers.at_keys is not None and asked.at_keys is not None
    n_needle = place.stop - place.start
    mass = answers.at_keys[:, :, mine].numpy()
    question = asked.at_keys[:, :, asked.suffix == index].mean(2).numpy()[..., :n_needle]
    hits = scores.copied(argmax, ids.numpy(), place.answer, ids.numpy())
    absent = np.isnan(mass).all(axis=(2, 3))
    values = {
        "copy": scores.copy_score(hits),
        "copy_exact": scores.copy_exact(argmax, place.answer),
        "mass": mass.sum(-1).mean(-1),
        "query_focus": scores.query_focus(question, null),
        "frequency": hits.any(axis=(2, 3)).astype(float),
    }
    if answers.toward is not None:
        values["write"] = answers.toward[:, :, mine].sum(-1).mean(-1).numpy()
    values = {name: np.where(absent, np.nan, v).astype(np.float32) for name, v in values.items()}
    best = logprobs.argmax(-1)
    gold = logprobs.gather(-1, ids[:, None]).sum().item()
    return bool((best == ids).all()), gold, values


def answer_directions(
    model: "HFModel", context: Context, trials: Sequence[Trial], seed: int
) -> Tensor:
    """Unembedding of each answer token minus that of another value's token in its place."""
    unembed = model.hf.get_output_embeddings().weight
    wanted: list[int] = []
    contrast: list[int] = []
    for trial in trials:
        needle = context.planted[trial.planted].needle
        others = [v for v in needle.values if v != trial.value] or [trial.value]
        other = tokenise(needle, others[seed % len(others)], model.tokenizer).answer_ids
        wanted += trial.answer
        contrast += [other[t] if t < len(other) else other[-1] for t in range(len(trial.answer))]
    return (unembed[wanted] - unembed[contrast]).float().detach()
