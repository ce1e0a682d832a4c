"""`circuits.loss_groups`: the loss of the next token by the classes of the two tokens, for a series
of checkpoints.

After section 4 of arXiv 2510.08203, which compares mean losses of four groups. A mean is no share:
how many positions a group has, what an n-gram model makes of them, and whether the target merely
goes on with a word are measured beside it.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.checkpoints import Models, file_name, named_models, same_tokenizer, visit
from circuits.given import with_options
from circuits.loss_plan import GROUPS, TARGETS, LossSettings, LossText, add_up, cells, read_text
from circuits.loss_plan import check_settings as check
from circuits.loss_result import LossResult
from circuits.loss_tables import ModelLoss, loss_table
from circuits.shelf import Part, Shelf, model_label
from interp.store import Provenance, provenance
from probes.documents import Source, Window

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
LOGITS = 2**24
"""Logits held at a time: 64 MiB."""


def loss_groups(
    models: Models,
    corpus: Source,
    settings: LossSettings | None = None,
    *,
    baseline: Source | None = None,
    load: dict[str, Any] | None = None,
    parts: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LossResult:
    """Loss of every position of a text in four groups, for one model or each of a series.

    Args:
        models: in the order of their training: folders, hub names (name@revision), models already
            loaded, or a mapping from names to these. Opened one after the other.
        corpus: files, folders, patterns, a `datasets` data set, or a list of texts.
        settings: what to measure; `options` are fields of it (`cut`, `gradients`, ...).
        baseline: text that trains the n-gram model, best the models' own; a share of the corpus
            if None, which is then not measured.
        load: options of `interp.load`: device, dtype, ...
        parts: a folder in which finished stretches are kept, to go on after an interruption.
        progress: called with positions done, positions in all, and the model.

    Raises:
        PromptError: text that is missing, unreadable or too short; no model.
        ModelError: a model that cannot be loaded, or has another tokenizer than the first.
        ResultError: parts of another run.
    """
    settings = with_options(settings or LossSettings(), options)
    check(settings)
    report = progress or (lambda *_: None)
    text: LossText | None = None
    found: dict[str, ModelLoss] = {}
    made: dict[str, Provenance] = {}
    for name, ref in named_models(models).items():

        def work(
            model: "HFModel", name: str = name, known: LossText | None = text
        ) -> tuple[LossText, ModelLoss, Provenance]:
            start = time.perf_counter()
            if known is not None:
                same_tokenizer(model, known.tokenizer, name)
            own = known or read_text(model, corpus, settings, baseline=baseline)
            folder = None if parts is None else Path(parts) / file_name(name)
            label = asdict(settings) | model_label(model) | {"text": own.digest}
            losses = _measured(model, own, settings, Shelf(folder, label), name, report)
            return own, losses, provenance(model, seconds=time.perf_counter() - start)

        text, found[name], made[name] = visit(ref, work, load)
    assert text is not None
    rows = loss_table(text.sums, found, n_draws=settings.n_draws, seed=settings.seed)
    return LossResult(asdict(settings), made, text.about | {"digest": text.digest}, rows)


def _measured(
    model: "HFModel", text: LossText, settings: LossSettings, shelf: Shelf, name: str,
    report: Progress,
) -> ModelLoss:  # fmt: skip
    """Sums of one model, stretch by stretch."""
    losses = np.zeros((text.n_documents, len(GROUPS), len(TARGETS)))
    done, total = 0, text.about["positions"]
    for n, documents in enumerate(np.array_split(np.arange(text.n_documents), settings.blocks)):
        members = set(documents.tolist())
        own = [w for w in text.windows if w.document in members]
        if not own:
            continue
        report(done, total, name)
        make = functools.partial(_part, model, text, own)
        part = shelf.kept(f"losses-{n:03}", make)
        losses[documents] = part.values["sums"]
        done += int(text.sums["positions"][documents].sum())
    report(done, total, name)
    gradients = shelf.kept_rows("gradients", lambda: _gradients(model, text, settings))
    return ModelLoss(losses, gradients)


def _part(model: "HFModel", text: LossText, windows: Sequence[Window]) -> Part:
    return Part({"sums": _losses(model, text, windows)})


def _losses(
    model: "HFModel", text: LossText, windows: Sequence[Window]
) -> Float[np.ndarray, "document group target"]:
    """Summed loss of the documents of some windows, in nats."""
    first = windows[0].document
    sums = np.zeros((windows[-1].document - first + 1, len(GROUPS), len(TARGETS)))
    longest = max(len(w.tokens) for w in windows)
    together = max(1, LOGITS // (longest * model.spec.d_vocab))
    for start in range(0, len(windows), together):
        group = windows[start : start + together]
        for window, loss in zip(group, next_token_losses(model, group, text.begin), strict=True):
            tokens = np.array(window.tokens, np.int64)
            cell = cells(tokens, text.function, text.internal, begin=text.begin)
            sums[window.document - first] += add_up(loss, cell)
    return sums


def next_token_losses(
    model: "HFModel", windows: Sequence[Window], begin: int
) -> list[Float[np.ndarray, " measured"]]:
    """Loss in nats of the token behind each position from `begin` on; windows stand alone."""
    import torch
    import torch.nn.functional as F

    positions = [range(begin, len(w.tokens) - 1) for w in windows]
    trace = model.extend(None, [w.tokens for w in windows], logits=positions)
    goals = torch.tensor([t for w in windows for t in w.tokens[begin + 1 :]])
    losses = F.cross_entropy(
        trace.logits.float(), goals.to(trace.logits.device), reduction="none"
    ).cpu()
    return [part.double().numpy() for part in losses.split([len(p) for p in positions])]


def _gradients(model: "HFModel", text: LossText, settings: LossSettings) -> list[dict[str, Any]]:
    if not settings.gradients:
        return []
    from circuits.loss_gradients import gradient_shares, gradient_windows

    return gradient_shares(model, text, gradient_windows(text, settings.gradients))
