"""The default backend: a Hugging Face decoder, read and edited through its public extension points.

`prefill` reads a context once, in chunks; `extend` runs many short suffixes behind it as one
packed sequence; `generate` goes on from there. No model class is named and no file is patched, and
between calls the model is as it was handed in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.backends import cache as caches
from interp.backends import gradients as gradient
from interp.backends import session as sessions
from interp.backends.anatomy import Anatomy, dissect
from interp.backends.edits import refuse_cached
from interp.backends.requests import Span, normalised
from interp.backends.residual import visiting
from interp.backends.run import Gathered, Run
from interp.backends.session import Session
from interp.backends.stem import Fan, Stems, fan, skipping
from interp.errors import ModelError, SiteError
from interp.layout import packed, sequence
from interp.sites import Edit, Site
from interp.spec import ModelSpec
from interp.trace import Gradients, Prefix, Read, SiteRead, Trace, nothing

CHUNK = 4096
"""Tokens of one prefill forward."""
PACK = 512
"""Tokens of one packed forward of suffixes: matrix products are efficient from here on."""

Progress = Callable[[int, int], None]


class HFModel:
    """A decoder under the instrument. Make one with `interp.load`."""

    name = "hf"

    def __init__(self, model: Any, tokenizer: Any = None, *, source: Any = None) -> None:
        sessions.register()
        self.hf = model
        self.tokenizer = tokenizer
        self.source = source
        n_vocab = model.get_input_embeddings().num_embeddings
        self.anatomy: Anatomy = dissect(model, self._watched, n_vocab)
        self._refuse_recurrence()

    @property
    def spec(self) -> ModelSpec:
        """Sizes of the model."""
        return self.anatomy.spec

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.hf.get_input_embeddings().weight.dtype

    # -- the primitive -----------------------------------------------------------------------

    def prefill(
        self,
        tokens: Tensor | Sequence[int],
        *,
        read: Sequence[Read] = (),
        edits: Sequence[Edit] = (),
        chunk: int = CHUNK,
        progress: Progress | None = None,
    ) -> Prefix:
        """Read a context once and keep its keys and values, whole.

        Args:
            tokens: `[pos]` token ids.
            read: what to bring back (`prefix.trace`); positions are absolute.
            edits: changes that act on the whole context ("everywhere").
            chunk: tokens per forward; bounds the memory of activations.
            progress: called with tokens done and tokens in all.

        Raises:
            SiteError: a read or edit that this model cannot serve, or an edit that wrote nothing.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.long).flatten().cpu()
        self._check_length(len(tokens))
        refuse_cached(edits, "a prefill")
        run = Run(self, [len(tokens)], read, edits)
        cache = caches.filling(self.spec.n_layers, len(tokens))
        logits = None
        for start in range(0, len(tokens), chunk):
            stop = min(start + chunk, len(tokens))
            layout = sequence(start, stop)
            spans = [Span(0, start, stop - start, 0)]
            last = [stop - start - 1] if stop == len(tokens) else []
            logits = run.forward(tokens[start:stop], layout, spans, cache, last)
            if progress is not None:
                progress(stop, len(tokens))
        assert logits is not None
        trace = run.trace(logits)
        keys, values = caches.contents(cache)
        return Prefix(tokens, keys, values, logits[0], trace if read or edits else None)

    def grow(self, prefix: Prefix, tokens: Tensor | Sequence[int]) -> Prefix:
        """The prefix with more tokens behind it, as if all had been read in one prefill.

        What rows of an `extend` have in common at their beginning is read once this way.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.long).flatten().cpu()
        start, stop = len(prefix), len(prefix) + len(tokens)
        if start == stop:
            return prefix
        self._check_length(stop)
        run = Run(self, [stop], (), ())
        cache = caches.filling(self.spec.n_layers, stop, prefix.keys, prefix.values)
        spans = [Span(0, start, len(tokens), 0)]
        logits = run.forward(tokens, sequence(start, stop), spans, cache, [len(tokens) - 1])
        keys, values = caches.contents(cache)
        return Prefix(torch.cat([prefix.tokens, tokens]), keys, values, logits[0])

    def extend(
        self,
        prefix: Prefix | None,
        suffixes: Sequence[Sequence[int]],
        *,
        at: Sequence[int] | None = None,
        read: Sequence[Read] = (),
        edits: Sequence[Edit] = (),
        logits: Sequence[Sequence[int]] | None = None,
    ) -> Trace:
        """Run suffixes behind a shared prefix, each as if it stood there alone.

        Args:
            prefix: what all suffixes continue; None where they stand alone, from position 0 on.
            suffixes: token ids, of any lengths.
            at: how many tokens of the prefix each suffix sees (all of them when None).
            read, edits: positions count inside each suffix.
            logits: positions whose logits are wanted; the last of each suffix when None.

        Raises:
            SiteError: see `prefill`.
        """
        prefix = nothing(self.spec.n_layers) if prefix is None else prefix
        at = [len(prefix)] * len(suffixes) if at is None else list(at)
        lengths = self._check_suffixes(prefix, suffixes, at)
        wanted = normalised([[-1]] * len(lengths) if logits is None else logits, lengths, "logits")
        run = Run(self, lengths, read, edits)
        shared = fan(suffixes, at, read=read, edits=edits, n_layers=self.spec.n_layers)
        first = shared.first if shared.worthwhile else (0,) * len(lengths)
        groups = _groups(lengths, at, first)
        begins = [min(first[i] for i in group) for group in groups]
        stems = self._stems(prefix, suffixes, at, shared, begins)
        above = range(self._needed(wanted, read, edits), self.spec.n_layers)
        out = Gathered([len(w) for w in wanted])
        for group, begin in zip(groups, begins, strict=True):
            n_prefix = max(at[i] for i in group)
            layout = packed(n_prefix, [lengths[i] for i in group], [at[i] for i in group])
            spans = _spans(group, lengths)
            rows = [s.start + p for s in spans for p in wanted[s.suffix]]
            cache = caches.extending(prefix.keys, prefix.values, n_prefix, keep=False)
            tokens = torch.cat([torch.as_tensor(suffixes[i], dtype=torch.long) for i in group])
            lower = self._upon(stems, begin, [shared.stem[i] for i in group])
            upper = skipping(self.anatomy, above)
            out.put(group, run.forward(tokens, layout, spans, cache, rows, *lower, upper))
        return run.trace(out.rows)

    def gradients(
        self,
        prefix: Prefix | None,
        suffix: Sequence[int],
        *,
        sites: Sequence[Site],
        objective: gradient.Objective,
        logits: Sequence[int] = (-1,),
        at: int | None = None,
        values: Mapping[Site, Tensor] | None = None,
    ) -> Gradients:
        """Activations of a suffix and the gradient of an objective there: one backward pass.

        Args:
            prefix: what the suffix continues; None where it stands alone.
            sites: without heads (`z`, `q`, `k`, `v` stand for all heads of a layer).
            objective: a scalar from the logits `[row, d_vocab]` at the positions `logits`, and
                from the activations of `sites`.
            at: how many tokens of the prefix the suffix sees (all when None).
            values: activations put in place of the model's own at some of the sites, over the
                whole suffix: the gradient is that of the patched run.

        Raises:
            SiteError: see `prefill`; a value of another shape, or at no site.
        """
        prefix = nothing(self.spec.n_layers) if prefix is None else prefix
        at = len(prefix) if at is None else at
        self._check_suffixes(prefix, [suffix], [at])
        return gradient.gradients(
            self, prefix, suffix, sites=sites, objective=objective, logits=logits, at=at,
            values=values or {},
        )  # fmt: skip

    def generate(
        self,
        prefix: Prefix,
        suffixes: Sequence[Sequence[int]],
        *,
        at: Sequence[int] | None = None,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        edits: Sequence[Edit] = (),
    ) -> list[list[int]]:
        """Greedy continuation of each suffix; a stop token ends it and is not returned.

        Edits without positions act on the suffix and on every decoded token; positions count on
        through the decoded tokens.
        """
        at = [len(prefix)] * len(suffixes) if at is None else list(at)
        lengths = self._check_suffixes(prefix, suffixes, at)
        refuse_cached(edits, "generating")
        run = Run(self, lengths, (), edits, open_end=True)
        done: dict[int, list[int]] = {}
        for group in _groups(lengths, at, [0] * len(lengths)):
            done.update(self._decode(prefix, suffixes, at, group, run, max_new_tokens, set(stop)))
        run.trace(torch.empty(0))
        return [done[i] for i in range(len(lengths))]

    def _decode(self, prefix, suffixes, at, group, run, n_new, stop) -> dict[int, list[int]]:
        lengths = [len(suffixes[i]) for i in group]
        n_prefix = max(at[i] for i in group)
        layout = packed(n_prefix, lengths, [at[i] for i in group])
        cache = caches.extending(prefix.keys, prefix.values, n_prefix, keep=True)
        tokens = torch.cat([torch.as_tensor(suffixes[i], dtype=torch.long) for i in group])
        spans = _spans(group, [len(s) for s in suffixes])
        texts: dict[int, list[int]] = {i: [] for i in group}
        live = list(range(len(group)))
        for step in range(n_new):
            last = [s.start + s.length - 1 for s in spans]
            best = run.forward(tokens, layout, spans, cache, last).argmax(-1).tolist()
            pairs = [(k, t) for k, t in zip(live, best, strict=True) if t not in stop]
            for k, token in pairs:
                texts[group[k]].append(token)
            live = [k for k, _ in pairs]
            if not live or step == n_new - 1:
                break
            tokens = torch.tensor([t for _, t in pairs])
            layout = layout.grown(live)
            spans = [Span(group[k], lengths[k] + step, 1, i) for i, k in enumerate(live)]
        return texts

    def _stems(
        self,
        prefix: Prefix,
        suffixes: Sequence[Sequence[int]],
        at: Sequence[int],
        shared: Fan,
        begins: Sequence[int],
    ) -> Stems:
        """What enters each layer at which a group of rows begins, for every distinct suffix."""
        stems = Stems([b for b in begins if b])
        if not stems.layers:
            return stems
        rows = sorted(set(shared.stem))
        lengths = [len(suffixes[r]) for r in rows]
        run = Run(self, lengths, (), ())
        unused = range(stems.layers[-1], self.spec.n_layers)
        for group in _groups(lengths, [at[r] for r in rows], [0] * len(rows)):
            own = [rows[i] for i in group]
            n_prefix = max(at[r] for r in own)
            layout = packed(n_prefix, [lengths[i] for i in group], [at[r] for r in own])
            cache = caches.extending(prefix.keys, prefix.values, n_prefix, keep=False)
            tokens = torch.cat([torch.as_tensor(suffixes[r], dtype=torch.long) for r in own])
            sizes = {r: len(suffixes[r]) for r in own}
            visits = {Site("resid_pre", n): [stems.keep(n, own, sizes)] for n in stems.layers}
            lower = (visiting(self.anatomy, visits), skipping(self.anatomy, unused))
            run.forward(tokens, layout, _spans(group, lengths), cache, [0], *lower)
        return stems

    def _needed(
        self, wanted: Sequence[Sequence[int]], read: Sequence[Read], edits: Sequence[Edit]
    ) -> int:
        """How many layers have to run: up to the last one read, where no logits are wanted."""
        sites = [s for r in read if isinstance(r, SiteRead) for s in r.sites]
        rows = any(not isinstance(r, SiteRead) for r in read)
        if edits or any(wanted) or rows or not sites:
            return self.spec.n_layers
        return max(s.layer + (s.kind != "resid_pre") for s in sites)

    def _upon(
        self, stems: Stems, begin: int, rows: Sequence[int]
    ) -> tuple[AbstractContextManager, ...]:
        """Contexts in which a forward begins at a layer, with the stems of its rows."""
        if begin == 0:
            return ()
        visits = {Site("resid_pre", begin): [stems.give(begin, rows)]}
        return visiting(self.anatomy, visits), skipping(self.anatomy, range(begin))

    # -- below the primitive -----------------------------------------------------------------

    @contextmanager
    def attending(
        self, implementation: str = sessions.NAME, *, grad: bool = False
    ) -> Iterator[None]:
        """The model in evaluation, under an attention implementation; given back as it was."""
        before = self.hf.config._attn_implementation
        training = self.hf.training
        self.hf.set_attn_implementation(implementation)
        self.hf.eval()
        try:
            with torch.set_grad_enabled(grad):
                yield
        finally:
            self.hf.set_attn_implementation(before)
            self.hf.train(training)

    def _watched(self, tokens: Tensor, calls: list) -> None:
        with self.attending(), Session(None, calls=calls).running():
            self.hf(tokens.to(self.device), use_cache=False)

    def _refuse_recurrence(self) -> None:
        """A layer with a running state mixes packed suffixes; better no number than a wrong one."""
        spec = self.spec
        others = [i for i in range(spec.n_layers) if i not in spec.attention_layers]
        if others:
            raise ModelError(
                f"{spec.architecture}: layers {', '.join(map(str, others[:6]))} have no attention "
                "rows but a running state (linear attention, state space), for which suffixes "
                "cannot share a prefix yet; use a model with attention in every layer"
            )

    def _check_length(self, n_tokens: int) -> None:
        limit = self.spec.context_length
        if n_tokens == 0:
            raise SiteError("a prefill needs at least one token")
        if limit is not None and n_tokens > limit:
            raise ModelError(
                f"{n_tokens} tokens asked, but {self.spec.architecture} was made for {limit}; "
                "use shorter lengths"
            )

    def _check_suffixes(
        self, prefix: Prefix, suffixes: Sequence[Sequence[int]], at: Sequence[int]
    ) -> list[int]:
        lengths = [len(s) for s in suffixes]
        if not lengths or min(lengths) == 0:
            raise SiteError("extend needs at least one suffix, and one token in each")
        least = min(1, len(prefix))
        if len(at) != len(lengths) or not all(least <= a <= len(prefix) for a in at):
            raise SiteError(f"`at` must name, for each suffix, {least}-{len(prefix)} prefix tokens")
        self._check_length(max(a + n for a, n in zip(at, lengths, strict=True)))
        return lengths


def _groups(lengths: Sequence[int], at: Sequence[int], first: Sequence[int]) -> list[list[int]]:
    """Suffixes that run together: near in context length and first layer, up to a pack."""
    budget = max(PACK, min(max(at) // 4, 4 * PACK))
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: (at[i], first[i])):
        if not groups or lengths[i] > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def _spans(group: Sequence[int], lengths: Sequence[int]) -> list[Span]:
    starts = torch.tensor([0, *[lengths[i] for i in group]]).cumsum(0).tolist()
    return [Span(i, 0, lengths[i], start) for i, start in zip(group, starts, strict=False)]
