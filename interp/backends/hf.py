"""The default backend: a Hugging Face decoder, read and edited through its public extension points.

`prefill` reads a context once, in chunks; `extend` runs many short suffixes behind it as one
packed sequence; `generate` goes on from there. No model class is named and no file is patched, and
between calls the model is as it was handed in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends import cache as caches
from interp.backends import session as sessions
from interp.backends.anatomy import Anatomy, dissect
from interp.backends.edits import PlacedEdit, SiteCollector, residual_hooks
from interp.backends.requests import RowCollector, Span, normalised
from interp.backends.session import LayerCall, Session
from interp.errors import ModelError, SiteError
from interp.layout import Layout, packed, sequence
from interp.sites import Edit
from interp.spec import ModelSpec
from interp.trace import Prefix, Read, RowRead, Trace

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
        run = _Run(self, [len(tokens)], read, edits)
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

    def extend(
        self,
        prefix: Prefix,
        suffixes: Sequence[Sequence[int]],
        *,
        at: Sequence[int] | None = None,
        read: Sequence[Read] = (),
        edits: Sequence[Edit] = (),
        logits: Sequence[Sequence[int]] | None = None,
    ) -> Trace:
        """Run suffixes behind a shared prefix, each as if it stood there alone.

        Args:
            suffixes: token ids, of any lengths.
            at: how many tokens of the prefix each suffix sees (all of them when None).
            read, edits: positions count inside each suffix.
            logits: positions whose logits are wanted; the last of each suffix when None.

        Raises:
            SiteError: see `prefill`.
        """
        at = [len(prefix)] * len(suffixes) if at is None else list(at)
        lengths = self._check_suffixes(prefix, suffixes, at)
        wanted = normalised([[-1]] * len(lengths) if logits is None else logits, lengths, "logits")
        run = _Run(self, lengths, read, edits)
        out: dict[int, Tensor] = {}
        for group in _groups(lengths, at):
            n_prefix = max(at[i] for i in group)
            layout = packed(n_prefix, [lengths[i] for i in group], [at[i] for i in group])
            spans = _spans(group, lengths)
            rows = [s.start + p for s in spans for p in wanted[s.suffix]]
            cache = caches.extending(prefix.keys, prefix.values, n_prefix, keep=False)
            tokens = torch.cat([torch.as_tensor(suffixes[i], dtype=torch.long) for i in group])
            result = run.forward(tokens, layout, spans, cache, rows)
            pieces = result.split([len(wanted[i]) for i in group])
            out.update(zip(group, pieces, strict=True))
        return run.trace(torch.cat([out[i] for i in range(len(lengths))]))

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
        run = _Run(self, lengths, (), edits, open_end=True)
        done: dict[int, list[int]] = {}
        for group in _groups(lengths, at):
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

    # -- below the primitive -----------------------------------------------------------------

    @contextmanager
    def attending(self, implementation: str = sessions.NAME) -> Iterator[None]:
        """The model in evaluation, under an attention implementation; given back as it was."""
        before = self.hf.config._attn_implementation
        training = self.hf.training
        self.hf.set_attn_implementation(implementation)
        self.hf.eval()
        try:
            with torch.no_grad():
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
        if len(at) != len(lengths) or not all(0 < a <= len(prefix) for a in at):
            raise SiteError(f"`at` must name, for each suffix, 1-{len(prefix)} prefix tokens")
        self._check_length(max(a + n for a, n in zip(at, lengths, strict=True)))
        return lengths


class _Run:
    """One call of the primitive: its reads and edits over all the forwards that it needs."""

    def __init__(self, model, lengths, read, edits, *, open_end: bool = False) -> None:
        self.model = model
        anatomy = model.anatomy
        self.rows = [RowCollector(r, lengths, anatomy) for r in read if isinstance(r, RowRead)]
        others = [r for r in read if not isinstance(r, RowRead)]
        self.sites = [SiteCollector(r, lengths, anatomy) for r in others]
        self.edits = [PlacedEdit(e, lengths, anatomy, open_end=open_end) for e in edits]

    def forward(
        self,
        tokens: Tensor,
        layout: Layout,
        spans: Sequence[Span],
        cache: caches.Cache,
        logit_rows: Sequence[int],
    ) -> Tensor:
        """One packed forward; float32 logits `[row, d_vocab]` of the rows asked for."""
        model = self.model
        busy = bool(self.rows or self.sites or self.edits)
        session = Session(layout.to(model.device), on_layer=self._on_layer if busy else None)
        for rows in self.rows:
            rows.begin(spans, session)
        for part in (*self.sites, *self.edits):
            part.begin(spans)  # type: ignore[attr-defined]
        self.columns = [_knockout_columns(e, layout) for e in self.edits]
        with ExitStack() as stack:
            stack.enter_context(model.attending())
            stack.enter_context(session.running())
            stack.enter_context(residual_hooks(model.anatomy, self.edits, self.sites))
            stack.enter_context(_norm_hooks(model.anatomy, self.rows))
            out = model.hf(
                input_ids=tokens[None].to(model.device),
                position_ids=layout.q_pos[None].to(model.device),
                past_key_values=cache,
                use_cache=True,
                **_keep(model.hf, logit_rows, model.device),
            )
        for rows in self.rows:
            rows.end(spans, session)
        logits = out.logits[0]
        if logits.shape[0] != len(logit_rows):
            logits = logits[list(logit_rows)]
        return logits.float().cpu()

    def _on_layer(self, call: LayerCall) -> Tensor:
        layer = self.model.anatomy.layer_of(call.module)
        z = call.z
        for edit, columns in zip(self.edits, self.columns, strict=True):
            site = edit.edit.site
            if edit.index and site.layer == layer and site.kind == "pattern":
                z = edit.pattern(call, z, columns)
        for edit in self.edits:
            site = edit.edit.site
            if edit.index and site.layer == layer and site.kind == "z":
                z = edit.head_output(z)
        call.z = z
        for rows in self.rows:
            rows.on_layer(layer, call)
        for sites in self.sites:
            for site in sites.parts:
                if site.kind == "z" and site.layer == layer:
                    sites.take(site, z if site.head is None else z[:, site.head])
        return z

    def trace(self, logits: Tensor) -> Trace:
        """Everything gathered; an edit that changed nothing is an error, not a result."""
        for edit in self.edits:
            if edit.written == 0:
                raise SiteError(f"the edit {edit.edit.op} at {edit.edit.site} changed nothing")
        sites = {s: v for c in self.sites for s, v in c.result().items()}
        rows = tuple(r.result() for r in self.rows)
        return Trace(logits, rows, sites, tuple(e.written for e in self.edits))


def _knockout_columns(edit: PlacedEdit, layout: Layout) -> Tensor | None:
    """Key columns to block for each edited row; the absent ones point one past the end."""
    if edit.edit.keys is None or not edit.index:
        return None
    keys = torch.tensor(edit.edit.keys).expand(len(edit.index), -1)
    columns = layout.columns(layout.q_seg[edit.index].cpu(), keys)
    return torch.where(columns < 0, torch.full_like(columns, len(layout.k_pos)), columns)


@contextmanager
def _norm_hooks(anatomy: Anatomy, rows: Sequence[RowCollector]) -> Iterator[None]:
    """Let row reads with directions see what enters the final and post-attention norms."""
    reading = [r for r in rows if r.read.directions is not None]
    with ExitStack() as stack:
        if reading and anatomy.final_norm is not None:

            def final(_module: nn.Module, args: tuple) -> None:
                for r in reading:
                    r.on_final_norm(args[0])

            hook = anatomy.final_norm.module.register_forward_pre_hook(final)
            stack.callback(hook.remove)
        for layer, norm in enumerate(anatomy.post_norms if reading else ()):
            if norm is not None:

                def post(_module: nn.Module, args: tuple, layer: int = layer) -> None:
                    for r in reading:
                        r.on_post_norm(layer, args[0])

                stack.callback(norm.module.register_forward_pre_hook(post).remove)
        yield


def _keep(model: nn.Module, rows: Sequence[int], device: torch.device) -> dict:
    """Ask for the logits of the wanted rows alone, where the model can do that."""
    import inspect

    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.tensor(rows, dtype=torch.long, device=device)}


def _groups(lengths: Sequence[int], at: Sequence[int]) -> list[list[int]]:
    """Suffixes that run together: near in context length, up to a pack of tokens."""
    budget = max(PACK, min(max(at) // 4, 4 * PACK))
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: at[i]):
        if not groups or lengths[i] > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def _spans(group: Sequence[int], lengths: Sequence[int]) -> list[Span]:
    starts = torch.tensor([0, *[lengths[i] for i in group]]).cumsum(0).tolist()
    return [Span(i, 0, lengths[i], start) for i, start in zip(group, starts, strict=False)]
