"""The retrieval score exactly as published (arXiv 2404.15574), fast and as the slow loop.

`scan` gives the published scores from one prefill, one fast decoding and one read of all the
decoding steps' rows; `step_by_step` is the loop as published. Both give the same numbers, which
`mnemoscope bench scan` and the tests compare trial by trial. Which of the released code's defects
are reproduced is a set of names (`probes.wu2024.DEFECTS`), all of them by default.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.plan import ROOM, ScanSettings
from circuits.scan_result import ScanResult
from circuits.scores import copied, copy_multiset, copy_score
from interp.checks import eager
from interp.errors import PromptError
from interp.store import provenance
from interp.trace import RowRead
from probes.haystack import load_text
from probes.needle import Needle, load_needles, select, value_for
from probes.rouge import published_rouge1_recall
from probes.wu2024 import DEFECTS, YI_NEWLINE, PublishedPrompt, check_defects, published_prompt

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_STEPS = 50
N_NEEDLES, N_LENGTHS, N_DEPTHS = 3, 20, 10
LONGEST = 50_000


@dataclass(frozen=True)
class PublishedTrial:
    """A prompt and where it belongs in the grid."""

    needle: Needle
    prompt: PublishedPrompt
    length: int
    depth: float


def published_trials(
    model: "HFModel",
    settings: ScanSettings,
    defects: Collection[str] = tuple(DEFECTS),
    *,
    n_needles: int = N_NEEDLES,
) -> list[PublishedTrial]:
    """Needles x lengths x depths; the published grid, up to the model's context, when unset.

    Raises:
        PromptError: a length that does not fit.
    """
    limit = model.spec.context_length or LONGEST
    lengths = settings.lengths or tuple(
        int(n) for n in np.linspace(1000, min(LONGEST, limit - ROOM), N_LENGTHS)
    )
    if max(lengths) > limit - ROOM:
        raise PromptError(f"length {max(lengths)} does not fit; use at most {limit - ROOM}")
    default = ScanSettings().depths == settings.depths
    depths = tuple(np.linspace(0, 1, N_DEPTHS).round(2)) if default else settings.depths
    needles = select(
        load_needles(settings.needles or None), n_needles, seed=settings.seed,
        kinds=settings.kinds or None, languages=settings.languages or None,
    )  # fmt: skip
    docs = load_text(settings.haystack or None)
    return [
        PublishedTrial(
            needle,
            published_prompt(
                docs[i % len(docs)].text * 4, needle, value_for(needle, settings.seed),
                model.tokenizer, length=length, depth=float(depth), defects=defects,
            ),
            length,
            float(depth),
        )
        for i, needle in enumerate(needles)
        for length in lengths
        for depth in depths
    ]  # fmt: skip


def stops(model: "HFModel", defects: Collection[str]) -> set[int]:
    """Token ids that end decoding."""
    newline = model.tokenizer.convert_tokens_to_ids("<0x0A>")
    published = {YI_NEWLINE} | ({newline} if isinstance(newline, int) else set())
    if "no_eos" in defects:
        return published
    return {i for i in [model.tokenizer.eos_token_id] if i is not None}


def fast(
    model: "HFModel", prompt: PublishedPrompt, defects: Collection[str]
) -> tuple[np.ndarray, list[int]]:
    """Scores `[layer, head]` and the tokens produced: decode first, then read all rows at once."""
    tokens = list(prompt.tokens)
    prefix = model.prefill(tokens[:-1])
    ending = stops(model, defects)
    ids = model.generate(prefix, [tokens[-1:]], max_new_tokens=N_STEPS, stop=list(ending))[0]
    if len(ids) < N_STEPS:
        # the step that ended decoding was a step too; which stop token it was does not matter
        ids = [*ids, next(iter(ending))]
    suffix = tokens[-1:] + ids[:-1]
    read = RowRead((tuple(range(len(suffix))),))
    argmax = model.extend(prefix, [suffix], read=[read]).rows[0].argmax
    assert argmax is not None
    return published_score(argmax.numpy(), np.array(ids), prompt, defects), ids


def published_score(
    argmax: np.ndarray, produced: np.ndarray, prompt: PublishedPrompt, defects: Collection[str]
) -> np.ndarray:
    """The score from the argmax of every head at every step."""
    if prompt.span is None:
        return np.zeros(argmax.shape[:2])
    span = range(*prompt.span)
    hits = copied(argmax, produced, span, np.array(prompt.tokens)[list(span)])
    return copy_multiset(hits) if "multiset" in defects else copy_score(hits)


def step_by_step(
    model: "HFModel", prompt: PublishedPrompt, defects: Collection[str]
) -> tuple[np.ndarray, list[int]]:
    """The loop as published: eager attention at every step, a Python loop over heads."""
    hf, tokens = model.hf, torch.tensor([prompt.tokens], device=model.device)
    ending = stops(model, defects)
    n_layers, n_heads = model.spec.n_layers, model.spec.n_heads
    counts = np.zeros((n_layers, n_heads))
    seen: dict[tuple[int, int], set[int]] = {}
    produced: list[int] = []
    with torch.no_grad():
        out = hf(tokens[:, :-1], use_cache=True, logits_to_keep=1)
        cache, last = out.past_key_values, tokens[:, -1:]
        with eager(model):
            for _ in range(N_STEPS):
                out = hf(last, past_key_values=cache, use_cache=True, output_attentions=True)
                token = int(out.logits[0, -1].argmax())
                produced.append(token)
                for layer in range(n_layers):
                    for head in range(n_heads):
                        row = out.attentions[layer][0, head, -1]
                        j = int(row.topk(1).indices)
                        span = prompt.span
                        if span and span[0] <= j < span[1] and token == prompt.tokens[j]:
                            counts[layer, head] += 1
                            seen.setdefault((layer, head), set()).add(j)
                if token in ending:
                    break
                last = torch.tensor([[token]], device=model.device)
    if prompt.span is None:
        return counts, produced
    if "multiset" not in defects:
        for (layer, head), places in seen.items():
            counts[layer, head] = len(places)
    return counts / (prompt.span[1] - prompt.span[0]), produced


def scan(
    model: "HFModel",
    settings: ScanSettings,
    *,
    defects: Collection[str] = tuple(DEFECTS),
    progress: Callable[[int, int, str], None] | None = None,
) -> ScanResult:
    """The published protocol over its grid; `defects` says what of the released code to keep."""
    import pandas as pd

    kept = check_defects(defects)
    started, report = time.monotonic(), progress or (lambda *_: None)
    trials = published_trials(model, settings, kept)
    rows: list[dict[str, Any]] = []
    values = []
    for i, trial in enumerate(trials):
        report(i, len(trials), "trial as published")
        score, ids = fast(model, trial.prompt, kept)
        values.append(score.astype(np.float32))
        rows.append(_row(trial, model.tokenizer.decode(ids), kept))
        report(i + 1, len(trials), "")
    stacked = np.stack(values)
    chosen = asdict_settings(settings, kept, trials)
    notes = tuple(f"defect kept: {n}: {DEFECTS[n]}" for n in sorted(kept))
    return ScanResult(
        chosen,
        provenance(model, seconds=time.monotonic() - started),
        pd.DataFrame(rows),
        {"copy": stacked, "frequency": (stacked > 0).astype(np.float32)},
        {},
        {},
        notes,
    )


def asdict_settings(
    settings: ScanSettings, defects: Collection[str], trials: list[PublishedTrial]
) -> dict[str, Any]:
    """Settings as saved with a result."""
    resolved = replace(
        settings,
        lengths=tuple(sorted({t.length for t in trials})),
        depths=tuple(sorted({t.depth for t in trials})),
        mode="single",
    )
    return resolved.as_dict() | {"preset": "wu2024", "defects": sorted(defects)}


def _row(trial: PublishedTrial, text: str, defects: Collection[str]) -> dict[str, Any]:
    prompt = trial.prompt
    rouge = published_rouge1_recall(prompt.answer, text)
    found = prompt.span is not None
    return {
        "trial": f"{trial.needle.id}-n{trial.length}-d{trial.depth:.2f}",
        "needle": trial.needle.id,
        "kind": trial.needle.kind,
        "language": trial.needle.language,
        "value": prompt.answer,
        "length": trial.length,
        "depth": trial.depth,
        "true_depth": prompt.span[0] / len(prompt.tokens) if prompt.span else trial.depth,
        "n_answer": len(prompt.answer_ids),
        "forced": False,
        "generated": text,
        "exact": prompt.answer.casefold() in text.casefold(),
        "rouge": rouge,
        "passed": rouge > 0.5 and (found or "zero_trials" in defects),
        "scored_on": "generated",
    }
