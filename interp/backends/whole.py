"""The contract of the instrument by whole forwards of another library: slow, obvious, an oracle.

No cache, no packing, no shared stem: every suffix is run behind its context as one sequence, with
whole attention matrices. A library takes part as a `Tap`, which names its places and runs a
forward; what reads and edits mean is in `interp.backends.whole_run`, once for all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from interp.backends import session as sessions
from interp.backends.edits import refuse_cached
from interp.backends.hf import CHUNK, HFModel, Progress
from interp.backends.outline import watch_modules
from interp.backends.requests import normalised
from interp.backends.twins import eager_attention, evaluating
from interp.backends.whole_forward import WholeForward
from interp.backends.whole_run import WholeRun
from interp.errors import SiteError
from interp.sites import Edit
from interp.trace import Prefix, Read, Trace, nothing

BUDGET = 2**27
"""Numbers of the largest tensor of a forward: its logits, or the patterns of one layer. Only
sequences of one length run together, so nothing is padded."""


class Tap(Protocol):
    """A library that runs whole forwards and lets places be visited on the way."""

    name: str
    writes: frozenset[str]
    """Kinds of places where the library itself carries on with what a visit returns."""

    def refusal(self, kind: str, layer: int, *, verb: str) -> str | None:
        """Why a kind of site cannot be read or edited in a layer; None where it can."""

    def run(self, tokens: Tensor, forward: WholeForward) -> tuple[Tensor, WholeForward]:
        """Run `tokens` `[row, pos]`, calling `forward.visit` at each of `forward.places`.

        Returns the logits `[row, pos, d_vocab]`, and `forward` as it is afterwards.
        """


class WholeModel(HFModel):
    """A decoder under the instrument, run by a library. Make one with `interp.load`.

    Attributes:
        tap: what runs it.
        hf: the same weights as a plain transformers model, for sizes and for comparison.
    """

    def __init__(
        self,
        tap: "Callable[[WholeModel], Tap]",
        plain: Any,
        tokenizer: Any = None,
        *,
        source: Any = None,
    ) -> None:
        """`tap` is made once the anatomy of the plain model is known."""
        super().__init__(plain, tokenizer, source=source)
        self.tap = tap(self)
        self.name = self.tap.name

    def prefill(
        self,
        tokens: Tensor | Sequence[int],
        *,
        read: Sequence[Read] = (),
        edits: Sequence[Edit] = (),
        chunk: int = CHUNK,  # noqa: ARG002 (the contract's; a whole forward has no chunks)
        progress: Progress | None = None,
    ) -> Prefix:
        """See `HFModel.prefill`. The context is kept as tokens, with the edits it is read with."""
        tokens = torch.as_tensor(tokens, dtype=torch.long).flatten().cpu()
        self._check_length(len(tokens))
        refuse_cached(edits, "a prefill")
        trace = self.extend(None, [tokens.tolist()], read=read, edits=edits)
        if progress is not None:
            progress(len(tokens), len(tokens))
        empty = nothing(self.spec.n_layers)
        return replace(
            empty,
            tokens=tokens,
            logits=trace.logits[0],
            trace=trace if read or edits else None,
            edits=tuple(_absolute(e, len(tokens)) for e in edits),
        )

    def grow(self, prefix: Prefix, tokens: Tensor | Sequence[int]) -> Prefix:
        """See `HFModel.grow`."""
        tokens = torch.as_tensor(tokens, dtype=torch.long).flatten().cpu()
        if not len(tokens):
            return prefix
        logits = self.extend(prefix, [tokens.tolist()]).logits[0]
        return replace(prefix, tokens=torch.cat([prefix.tokens, tokens]), logits=logits, trace=None)

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
        """See `HFModel.extend`."""
        prefix = nothing(self.spec.n_layers) if prefix is None else prefix
        at = [len(prefix)] * len(suffixes) if at is None else list(at)
        lengths = self._check_suffixes(prefix, suffixes, at)
        wanted = normalised([[-1]] * len(lengths) if logits is None else logits, lengths, "logits")
        run = WholeRun(self, prefix, lengths, at, read=read, edits=edits)
        out: dict[int, Tensor] = {}
        for rows in self._groups([a + n for a, n in zip(at, lengths, strict=True)]):
            found = run.forward(rows, [suffixes[i] for i in rows])
            for i, one in zip(rows, found, strict=True):
                out[i] = one[[at[i] + p for p in wanted[i]]]
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
        """See `HFModel.generate`. Every token is a whole forward."""
        at = [len(prefix)] * len(suffixes) if at is None else list(at)
        lengths = self._check_suffixes(prefix, suffixes, at)
        refuse_cached(edits, "generating")
        run = WholeRun(self, prefix, lengths, at, edits=edits, open_end=True)
        texts: list[list[int]] = [[] for _ in suffixes]
        live = list(range(len(suffixes)))
        for _ in range(max_new_tokens):
            said: dict[int, int] = {}
            sizes = [at[i] + lengths[i] + len(texts[i]) for i in live]
            for group in self._groups(sizes):
                rows = [live[g] for g in group]
                found = run.forward(rows, [[*suffixes[i], *texts[i]] for i in rows])
                said |= {i: int(one[-1].argmax()) for i, one in zip(rows, found, strict=True)}
            live = [i for i in live if said[i] not in stop]
            for i in live:
                texts[i].append(said[i])
            if not live:
                break
        run.trace(torch.empty(0))
        return texts

    def gradients(self, *_: Any, **__: Any) -> NoReturn:
        """Not here: the default backend has them.

        Raises:
            SiteError: always.
        """
        raise SiteError(
            f"the {self.name} backend takes no gradients; load the same object without backend= "
            "for attribution patching"
        )

    def _groups(self, sizes: Sequence[int]) -> list[list[int]]:
        """Indices of sequences of one length, as many together as the budget allows."""
        by_size: dict[int, list[int]] = {}
        for i, size in enumerate(sizes):
            by_size.setdefault(size, []).append(i)
        out = []
        for size, group in by_size.items():
            largest = size * max(self.spec.d_vocab, size * self.spec.n_heads)
            n = max(1, BUDGET // largest)
            out += [group[start : start + n] for start in range(0, len(group), n)]
        return out

    @contextmanager
    def attending(
        self, implementation: str = sessions.NAME, *, grad: bool = False
    ) -> Iterator[None]:
        """See `HFModel.attending`; outside the shared dispatch there is eager attention alone."""
        if self.hf._can_set_attn_implementation():
            with super().attending(implementation, grad=grad):
                yield
            return
        with evaluating(self.hf), eager_attention(self.hf), torch.set_grad_enabled(grad):
            yield

    def _watched(self, tokens: Tensor, calls: list) -> None:
        super()._watched(tokens, calls)
        if not calls:
            watch_modules(self.hf, tokens.to(self.device), calls)


def _absolute(edit: Edit, n_tokens: int) -> Edit:
    """The edit of a prefill with its positions counted from the front, so that it can be cut."""
    if edit.positions is None:
        return replace(edit, rows=(0,), positions=tuple(range(n_tokens)))
    return replace(edit, rows=(0,), positions=tuple(p % n_tokens for p in edit.positions))
