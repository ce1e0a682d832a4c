"""One call of the primitive: its reads and edits over all the forwards that it needs."""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.backends import cache as caches
from interp.backends import heads
from interp.backends.anatomy import Anatomy
from interp.backends.edits import RESIDUAL_SITES, PlacedEdit
from interp.backends.requests import RowCollector, Span
from interp.backends.residual import SiteCollector, residual_hooks
from interp.backends.session import LayerCall, Session
from interp.errors import SiteError
from interp.layout import Layout
from interp.sites import Edit
from interp.trace import Read, RowRead, Trace

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


class Run:
    """The reads and edits of one call, and what they have gathered so far."""

    def __init__(
        self,
        model: "HFModel",
        lengths: Sequence[int],
        read: Sequence[Read],
        edits: Sequence[Edit],
        *,
        open_end: bool = False,
    ) -> None:
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
        *contexts: AbstractContextManager,
    ) -> Tensor:
        """One packed forward; float32 logits `[row, d_vocab]` of the rows asked for."""
        model = self.model
        self.begin(spans)
        busy = bool(self.rows or self.sites or self.by_layer)
        session = Session(layout.to(model.device), on_layer=self._on_layer if busy else None)
        self.session = session
        for rows in self.rows:
            rows.begin(spans, session)
        with ExitStack() as stack:
            stack.enter_context(model.attending())
            for context in contexts:
                stack.enter_context(context)
            stack.enter_context(session.running())
            stack.enter_context(residual_hooks(model.anatomy, self.edits, self.sites))
            stack.enter_context(_norm_hooks(model.anatomy, self.rows))
            logits = call(model, tokens, layout, cache, logit_rows)
        for rows in self.rows:
            rows.end(spans, session)
        return logits.float().cpu()

    def begin(self, spans: Sequence[Span]) -> None:
        """Place edits and reads in the forward that comes."""
        by_suffix = {span.suffix: span for span in spans}
        self.by_layer: dict[int, list[PlacedEdit]] = {}
        for edit in self.edits:
            edit.begin(by_suffix)
            if edit.index and edit.site.kind not in RESIDUAL_SITES:
                self.by_layer.setdefault(edit.site.layer, []).append(edit)
        for sites in self.sites:
            sites.begin(spans)

    def _on_layer(self, call: LayerCall) -> Tensor:
        layer = self.model.anatomy.layer_of(call.module)
        layout = self.session.layout_on(call.query.device)
        call.z = heads.edited(call, self.by_layer.get(layer, ()), layout)
        for rows in self.rows:
            rows.on_layer(layer, call)
        for sites in self.sites:
            sites.take_heads(layer, call)
        return call.z

    def trace(self, logits: Tensor) -> Trace:
        """Everything gathered; an edit that changed nothing is an error, not a result."""
        for edit in self.edits:
            if edit.written == 0:
                raise SiteError(f"the edit {edit.edit.op} at {edit.edit.site} changed nothing")
        sites: Mapping = {s: v for c in self.sites for s, v in c.result().items()}
        rows = tuple(r.result() for r in self.rows)
        return Trace(logits, rows, sites, tuple(e.written for e in self.edits))


def call(
    model: "HFModel",
    tokens: Tensor,
    layout: Layout,
    cache: caches.Cache,
    logit_rows: Sequence[int],
) -> Tensor:
    """The model's own forward on packed tokens: logits `[row, d_vocab]` of the rows asked for."""
    out = model.hf(
        input_ids=tokens[None].to(model.device),
        position_ids=layout.q_pos[None].to(model.device),
        past_key_values=cache,
        use_cache=True,
        **_keep(model.hf, logit_rows, model.device),
    )
    logits = out.logits[0]
    return logits if logits.shape[0] == len(logit_rows) else logits[list(logit_rows)]


def _keep(model: nn.Module, rows: Sequence[int], device: torch.device) -> dict:
    """Ask for the logits of the wanted rows alone, where the model can do that."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.tensor(rows, dtype=torch.long, device=device)}


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


class Gathered:
    """Logits of all suffixes in order, `[row, d_vocab]`: held once, however many forwards."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends = list(itertools.accumulate(sizes))
        self.sizes = sizes
        self.rows: Tensor = torch.empty(0)

    def put(self, group: Sequence[int], found: Tensor) -> None:
        """The logits of some suffixes, from one forward."""
        if list(group) == list(range(len(self.sizes))):
            self.rows = found
            return
        if not len(self.rows):
            self.rows = found.new_empty(self.ends[-1], found.shape[-1])
        for i, piece in zip(group, found.split([self.sizes[i] for i in group]), strict=True):
            self.rows[self.ends[i] - self.sizes[i] : self.ends[i]] = piece
