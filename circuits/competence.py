"""Can the model do the task at all? Asked before any mechanism is named.

The model answers by real generation. From what it says come the style of the prompt, the form of
the answer, and the accuracy at every position; a mechanism is only sought where the model is right
at least as often as a floor says, and where its probability is on the answers that are scored.
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.binding_plan import BindSettings, Study
from circuits.interchange import Asked, answer_ids, ask_groups, last_logits
from circuits.measure import stop_tokens
from probes.answer_form import Answers, find_form
from probes.binding_pairs import Sampler
from probes.binding_prompts import BindingPrompt, Writer, styles_of

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_NEW = 4
"""Tokens generated: an answer of one word and what comes behind it."""
N_TRIED = 2
"""Contexts on which a style is tried."""
FIRST = 1_000_000
"""Index of the first entity set of preflights, far from those of the measurements."""


@dataclass(frozen=True, eq=False)
class Ready:
    """What a study's prompts are made with, once the model has been heard.

    Attributes:
        study: with pools cut to the words that can be scored.
        tried: mean accuracy by generation and best mass of every style tried.
    """

    study: Study
    writer: Writer
    answers: Answers
    tried: dict[str, tuple[float, float]]

    def sampler(self, *, collisions: bool = False) -> Sampler:
        """Draws entity sets of the study."""
        return Sampler(self.study.task, self.study.question, self.study.n, collisions)


def make_ready(model: "HFModel", study: Study, settings: BindSettings) -> Ready:
    """Find the style and the answer form of a study.

    With `auto`, the style in which the model is right most often (then: that puts most probability
    on the candidates), on contexts of their own; ties go to the first in the table.

    Raises:
        PromptError: too few words are one token in any form of an answer.
    """
    tokenizer = model.tokenizer
    styles = styles_of(tokenizer) if settings.style == "auto" else (settings.style,)
    heard: dict[str, tuple[float, Answers]] = {}
    for style in styles:
        writer = _writer(tokenizer, study, style, settings)
        heard[style] = _tried(model, writer, study.n, settings.seed)
    best = max(heard, key=lambda s: (round(heard[s][0], 3), heard[s][1].mass))
    answers = heard[best][1]
    task, target = study.task, study.question.target
    words = tuple(answers.writable(task.pools[target]))
    dropped = tuple(w for w in task.pools[target] if w not in words)
    task = replace(task, pools={**task.pools, target: words})
    study = replace(study, task=task, dropped=(*study.dropped, *dropped))
    writer = _writer(tokenizer, study, best, settings)
    return Ready(study, writer, answers, {s: (a, f.mass) for s, (a, f) in heard.items()})


def preflight(model: "HFModel", ready: Ready, settings: BindSettings) -> list[dict[str, Any]]:
    """One row for each group asked for in each of `n_preflight` contexts.

    Columns: set, group, right (what the model generates begins with the answer), first (the
    largest logit of the vocabulary is the answer's), chosen (group of the largest candidate),
    p_answer, mass (on all candidates), said (generated text).
    """
    rows = []
    for k in range(settings.n_preflight):
        index = FIRST + N_TRIED + k
        rows += _answered(model, ready, index, settings.seed)
    return rows


def says(text: str, word: str) -> bool:
    """Whether a generated text begins with a word, case and marks before it aside."""
    return re.match(rf"\W*{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _writer(tokenizer: Any, study: Study, style: str, settings: BindSettings) -> Writer:
    return Writer(tokenizer, study.task, study.question, style, study.filler, settings.filler_kind)


def _tried(model: "HFModel", writer: Writer, n: int, seed: int) -> tuple[float, Answers]:
    """Accuracy of a style by generation, and the form of its answers."""
    right: list[bool] = []
    prompts: list[BindingPrompt] = []
    logits = []
    for k in range(N_TRIED):
        asked = _asked(model, writer, n, FIRST + k, seed)
        logits.append(last_logits(model, asked))
        prompts += asked.prompts
        texts = _said(model, asked)
        right += [says(t, p.answer or "") for t, p in zip(texts, asked.prompts, strict=True)]
    words = writer.task.pools[writer.question.target]
    form = find_form(model.tokenizer, prompts, torch.cat(logits), words=words, least=n + 1)
    return float(np.mean(right)), form


def _answered(model: "HFModel", ready: Ready, index: int, seed: int) -> list[dict[str, Any]]:
    asked = _asked(model, ready.writer, ready.study.n, index, seed)
    probs = last_logits(model, asked).float().softmax(-1)
    texts = _said(model, asked)
    ids = answer_ids(ready.answers, asked.prompts[0].candidates)
    rows = []
    for prompt, row, text in zip(asked.prompts, probs, texts, strict=True):
        own = row[ids]
        assert prompt.group is not None
        rows.append({
            "set": index, "group": prompt.group, "right": says(text, prompt.answer or ""),
            "first": int(row.argmax()) == int(ids[prompt.group]), "chosen": int(own.argmax()),
            "p_answer": float(own[prompt.group]), "mass": float(own.sum()), "said": text,
        })  # fmt: skip
    return rows


def _asked(model: "HFModel", writer: Writer, n: int, index: int, seed: int) -> Asked:
    rng = np.random.default_rng([seed, index, n])
    matrix, _ = Sampler(writer.task, writer.question, n).words(rng)
    return ask_groups(model, writer, matrix)


def _said(model: "HFModel", asked: Asked) -> list[str]:
    suffixes = [asked.suffix(i) for i in range(len(asked.prompts))]
    found = model.generate(asked.prefix, suffixes, max_new_tokens=N_NEW, stop=stop_tokens(model))
    return [model.tokenizer.decode(ids) for ids in found]
