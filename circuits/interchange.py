"""Interchange interventions at the last token: many donors' vectors in one recipient's question.

A recipient's prompt is read once up to its last token. That token then runs once for every donor
and layer, with the residual entering the layer replaced by the donor's, so that an evaluation costs
one token above the layer (arXiv 2510.06182 runs two full forwards). Exact: nothing before the last
token and nothing below the layer depends on the patch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import PromptError
from interp.sites import Edit, Site
from interp.trace import Prefix, SiteRead
from probes.answer_form import Answers
from probes.binding_pairs import Donor, EntitySet, recipients
from probes.binding_prompts import BindingPrompt, Matrix, Writer, shared_start

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

ROWS = 128
"""Evaluations of one extend: bounds the memory of their logits."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What one row of logits says about a prompt's candidates.

    Attributes:
        logits: of the candidates' answer tokens, `[candidate]`; the recipient's groups in order.
        total: log of the sum over the whole vocabulary: `exp(logits - total)` are probabilities.
        top: the token of the largest logit in the whole vocabulary.
        said: logit of the donor's own answer.
    """

    logits: Float[np.ndarray, " candidate"]
    total: float
    top: int
    said: float


@dataclass(frozen=True)
class Case:
    """One evaluation: which donor question went into which recipient question, and where.

    `said` is the token of the donor's own answer.
    """

    set_index: int
    donor: int
    design: str
    layer: int
    i_p: int
    i_l: int | None
    i_r: int | None
    i_n: int
    said: int


@dataclass(frozen=True, eq=False)
class SetRun:
    """All evaluations of one entity set.

    Attributes:
        candidates: answer tokens of the recipient's groups.
        unpatched: readings of the recipient questions as they are, by group asked for.
        self_change: largest change of a logit when a question is patched with its own vector.
    """

    cases: list[Case]
    readings: list[Reading]
    candidates: tuple[int, ...]
    unpatched: dict[int, Reading]
    self_change: float


@dataclass(frozen=True, eq=False)
class Asked:
    """A context read up to where its questions part, and the questions behind it."""

    prefix: Prefix
    prompts: tuple[BindingPrompt, ...]
    start: int

    def suffix(self, i: int) -> tuple[int, ...]:
        """Tokens of question i behind the prefix."""
        return self.prompts[i].tokens[self.start :]


def ask(model: "HFModel", prompts: Sequence[BindingPrompt]) -> Asked:
    """Read what prompts of one context have in common."""
    start = shared_start(prompts)
    if start == 0:
        raise PromptError("prompts of one context begin with different tokens; check the task")
    return Asked(model.prefill(prompts[0].tokens[:start]), tuple(prompts), start)


def ask_groups(
    model: "HFModel", writer: Writer, matrix: Matrix, groups: Sequence[int] | None = None
) -> Asked:
    """Questions about groups of a context (all when None), read up to where they part."""
    chosen = range(len(matrix)) if groups is None else groups
    return ask(model, [writer.write(matrix, g) for g in chosen])


def answer_ids(answers: Answers, words: Sequence[str]) -> Int[Tensor, " word"]:
    """The tokens with which words are answered."""
    return torch.tensor([answers.token(w) for w in words])


def last_logits(model: "HFModel", asked: Asked) -> Float[Tensor, "prompt d_vocab"]:
    """Logits of the token that comes after each prompt."""
    return model.extend(asked.prefix, [asked.suffix(i) for i in range(len(asked.prompts))]).logits


def last_states(
    model: "HFModel", asked: Asked, layers: Sequence[int]
) -> Float[Tensor, "layer prompt d_model"]:
    """Residuals that enter layers at the last token of each prompt; one forward for all layers.

    Layer `n_layers` stands for what leaves the last one.
    """
    sites = [entering(model, layer) for layer in layers]
    suffixes = [asked.suffix(i) for i in range(len(asked.prompts))]
    read = SiteRead(tuple(sites), ((-1,),) * len(suffixes))
    # without logits the layers above the last one read are not run
    seen = model.extend(asked.prefix, suffixes, read=[read], logits=[()] * len(suffixes)).sites
    return torch.stack([seen[site] for site in sites])


def entering(model: "HFModel", layer: int) -> Site:
    """The site of what enters a layer."""
    n = model.spec.n_layers
    return Site("resid_pre", layer) if layer < n else Site("resid_post", n - 1)


@dataclass(frozen=True, eq=False)
class LastToken:
    """A question read up to its last token, which is run again and again.

    Attributes:
        logits: after the prompt as it is, `[d_vocab]`.
        states: what enters the layers asked for, by layer, `[d_model]`.
    """

    prefix: Prefix
    token: int
    logits: Tensor
    states: dict[int, Tensor]


def last_token(
    model: "HFModel", asked: Asked, question: int, layers: Sequence[int] = ()
) -> LastToken:
    """Read a question up to its last token, and run that once as it is."""
    suffix = asked.suffix(question)
    prefix = model.grow(asked.prefix, suffix[:-1])
    sites = {layer: entering(model, layer) for layer in layers}
    read = [SiteRead(tuple(sites.values()), ((0,),))] if sites else []
    trace = model.extend(prefix, [suffix[-1:]], read=read)
    states = {layer: trace.sites[site][0] for layer, site in sites.items()}
    return LastToken(prefix, suffix[-1], trace.logits[0], states)


def patched_logits(
    model: "HFModel", at: LastToken, vectors: Sequence[tuple[int, Tensor]]
) -> Iterator[Float[Tensor, " d_vocab"]]:
    """Logits after the last token, once for each (layer, vector) put in the place of its own."""
    rows = [
        [Edit(entering(model, layer), "replace", vector, positions=(0,))]
        for layer, vector in vectors
    ]
    yield from edited_logits(model, at.prefix, [at.token], rows)


def edited_logits(
    model: "HFModel", prefix: Prefix, suffix: Sequence[int], rows: Sequence[Sequence[Edit]]
) -> Iterator[Float[Tensor, " d_vocab"]]:
    """Logits after one suffix, once with each list of edits (whose own `rows` are not read)."""
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        edits = [replace(e, rows=(i,)) for i, own in enumerate(part) for e in own]
        yield from model.extend(prefix, [suffix] * len(part), edits=edits).logits


def read_answers(row: Tensor, candidates: Int[Tensor, " candidate"], said: int) -> Reading:
    """The reading of a row of logits `[d_vocab]`."""
    row = row.float()
    return Reading(
        row[candidates].numpy(), float(row.logsumexp(-1)), int(row.argmax()), float(row[said])
    )


def run_set(
    model: "HFModel",
    writer: Writer,
    answers: Answers,
    entity_set: EntitySet,
    *,
    layers: Sequence[int],
    n_recipients: int = 1,
    collisions: bool = False,
    seed: int = 0,
) -> SetRun:
    """All evaluations of an entity set: each donor question in `n_recipients` recipient questions.

    Every recipient question is also patched with its own vectors, which must change nothing.
    """
    own = ask_groups(model, writer, entity_set.matrix)
    ids = answer_ids(answers, own.prompts[0].candidates)
    jobs = _jobs(model, writer, answers, entity_set, layers, n_recipients, collisions, seed)
    cases, readings, unpatched, change = [], [], {}, 0.0
    for i_n, rows in sorted(jobs.items()):
        at = last_token(model, own, i_n, layers)
        vectors = [(case.layer, v) for case, v in rows] + [*at.states.items()]
        for k, row in enumerate(patched_logits(model, at, vectors)):
            if k < len(rows):
                cases.append(rows[k][0])
                readings.append(read_answers(row, ids, rows[k][0].said))
            else:
                change = max(change, float((row - at.logits).abs().max()))
        unpatched[i_n] = read_answers(at.logits, ids, int(ids[i_n]))
    return SetRun(cases, readings, tuple(ids.tolist()), unpatched, change)


def _jobs(
    model: "HFModel", writer: Writer, answers: Answers, entity_set: EntitySet,
    layers: Sequence[int], n_recipients: int, collisions: bool, seed: int,
) -> dict[int, list[tuple[Case, Tensor]]]:  # fmt: skip
    """By recipient question, the cases that go into it with their vectors."""
    rng = np.random.default_rng([seed, entity_set.index])
    jobs: dict[int, list[tuple[Case, Tensor]]] = {}
    for d, donor in enumerate(entity_set.donors):
        states, said = _donor_states(model, writer, answers, donor, layers)
        for k, p in enumerate(donor.groups):
            for i_n in recipients(entity_set, donor, p, rng, n=n_recipients, collisions=collisions):
                for j, layer in enumerate(layers):
                    case = Case(
                        entity_set.index, d, donor.design, layer, p, donor.lexical[p],
                        donor.reflexive[p], i_n, said[k],
                    )  # fmt: skip
                    jobs.setdefault(i_n, []).append((case, states[j, k]))
    return jobs


def _donor_states(
    model: "HFModel", writer: Writer, answers: Answers, donor: Donor, layers: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """States `[layer, question, d_model]` of a donor's questions, and their answers' tokens."""
    asked = ask_groups(model, writer, donor.matrix, donor.groups)
    said = [answers.token(prompt.answer or "") for prompt in asked.prompts]
    return last_states(model, asked, layers), said
