"""Is it retrieval that the heads are needed for? The same ablation on prompts that need none.

Three controls: plain text (what perplexity measures), facts that the model knows by heart, and
short repeats of random tokens. All in nats per token, so that they stand beside the loss on the
answers themselves. The last is near to retrieval: heads that retrieve by induction serve it too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.ablations import Ablation, Material, edits_of
from circuits.interventions import Sets, row_logits
from circuits.roles import ordinary_tokens
from interp.errors import PromptError
from interp.trace import Prefix
from probes.format import encode
from probes.haystack import cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interp.backends.hf import HFModel
    from probes.corpus import Document

N_TEXTS, N_FACTS, N_COPIES = 8, 24, 8
TEXT_TOKENS, COPY_TOKENS = 64, 24
KINDS = {
    "plain text": "prose, nats per token",
    "known facts": "answers that the model gives without context, nats per token",
    "short copying": "the repeat of a random sequence of tokens, nats per token",
}


@dataclass(frozen=True)
class Probe:
    """Tokens read, tokens whose log-probability counts, and a name to cluster by."""

    kind: str
    name: str
    before: tuple[int, ...]
    scored: tuple[int, ...]


def probes(model: "HFModel", docs: "Sequence[Document]", *, seed: int) -> list[Probe]:
    """All probes; facts that the model does not know are left out when they are run."""
    return [*_texts(model, docs, seed), *_facts(model), *_copies(model, seed)]


def run_probes(
    model: "HFModel",
    wanted: Sequence[Probe],
    sets: Sets,
    *,
    how: Ablation,
    means: "Mapping[str, Tensor]",
) -> tuple[list[Probe], np.ndarray]:
    """Log-probability per scored token, `[set, probe]`, of the probes that count.

    A fact counts when the unablated model, given the words before it, finds each of its tokens
    the likeliest.

    Raises:
        PromptError: the ablation is made of parts that only needle prompts have.
    """
    if how.needs in ("twin", "needle"):
        raise PromptError(f"{how.name} ablation is made from the needle; plain text has none")
    kept, columns = [], []
    for probe in wanted:
        head, suffix = probe.before[:1], (*probe.before[1:], *probe.scored[:-1])
        prefix = model.prefill(head)
        if probe.kind == "known facts" and not _knows(model, prefix, suffix, probe.scored):
            continue
        kept.append(probe)
        columns.append(_run(model, prefix, suffix, probe.scored, sets, how, means))
    return kept, np.stack(columns, axis=1) if columns else np.empty((len(sets), 0))


def _run(
    model: "HFModel",
    prefix: Prefix,
    suffix: tuple[int, ...],
    scored: tuple[int, ...],
    sets: Sets,
    how: Ablation,
    means: "Mapping[str, Tensor]",
) -> np.ndarray:
    n, rows = len(suffix), range(len(suffix) - len(scored), len(suffix))
    m = Material(tuple(range(n)), ("context",) * n, means)
    edits, ids = edits_of(sets, how, m), torch.tensor(scored)
    found = row_logits(model, prefix, suffix, rows, n_rows=len(sets), edits=edits)
    return np.array([float(x.log_softmax(-1).gather(-1, ids[:, None]).mean()) for x in found])


def _knows(
    model: "HFModel", prefix: Prefix, suffix: tuple[int, ...], scored: tuple[int, ...]
) -> bool:
    rows = range(len(suffix) - len(scored), len(suffix))
    best = model.extend(prefix, [suffix], logits=[rows]).logits.argmax(-1)
    return best.tolist() == list(scored)


def _texts(model: "HFModel", docs: "Sequence[Document]", seed: int) -> list[Probe]:
    stretches = cut(docs, model.tokenizer, n_haystacks=N_TEXTS, n_tokens=TEXT_TOKENS + 1, seed=seed)
    tokens = [[t for s in h.sentences for t in s][: TEXT_TOKENS + 1] for h in stretches]
    half = TEXT_TOKENS // 2
    return [
        Probe("plain text", h.name, tuple(t[:half]), tuple(t[half:]))
        for h, t in zip(stretches, tokens, strict=True)
    ]


def _facts(model: "HFModel") -> list[Probe]:
    text = (resources.files("probes") / "data" / "facts.jsonl").read_text("utf-8")
    bos = getattr(model.tokenizer, "bos_token_id", None)
    # a first token that is edited in no run: where there is no BOS, a line break
    first = [bos] if bos is not None else encode(model.tokenizer, "\n")[:1]
    out = []
    for line in text.splitlines()[:N_FACTS]:
        fact: dict[str, Any] = json.loads(line)
        before, answer = (encode(model.tokenizer, fact[k]) for k in ("prompt", "answer"))
        out.append(Probe("known facts", fact["prompt"], (*first, *before), tuple(answer)))
    return out


def _copies(model: "HFModel", seed: int) -> list[Probe]:
    generator = torch.Generator().manual_seed(seed)
    ordinary = ordinary_tokens(model)
    out = []
    for i in range(N_COPIES):
        picked = torch.randperm(len(ordinary), generator=generator)[: COPY_TOKENS + 1]
        first, *rest = ordinary[picked].tolist()
        out.append(
            Probe("short copying", f"sequence {i}", (first, *rest, rest[0]), tuple(rest[1:]))
        )
    return out
