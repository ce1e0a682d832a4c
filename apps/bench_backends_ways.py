"""Ways to read the attention of one question: a row each, from the bare forward to whole patterns.

Every way reads its context anew, and every reader ends with the same numbers of the answer's rows.
The plain readings are what the users of each library write: all patterns of a full forward are
kept, then reduced. Where a library passes it on to the model, they ask for the answer's logits
alone, as our engine does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.checks import eager
from interp.errors import ModelError
from interp.trace import RowRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel
    from interp.spec import ModelSpec
    from interp.trace import Prefix


@dataclass(frozen=True)
class Question:
    """One trial as tokens.

    Attributes:
        asked: question and answer, up to the last token that predicts one of the answer.
        n_rows: how many of the last tokens predict one.
        needle: positions in `context`.
    """

    context: tuple[int, ...]
    asked: tuple[int, ...]
    n_rows: int
    needle: range

    @property
    def tokens(self) -> list[int]:
        """Context and question as one sequence."""
        return [*self.context, *self.asked]

    @property
    def short(self) -> "Question":
        """The same on the first tokens of the context alone, to warm up with."""
        return Question(self.context[:64], self.asked, self.n_rows, range(4, 8))


@dataclass(frozen=True, eq=False)
class Reading:
    """What a way reads, of layers that have attention.

    Attributes:
        argmax: where each row looks most, `[layer, head, row]`.
        mass: weight on the needle, `[layer, head, row]`.
        logits: of the answer's rows, `[row, d_vocab]`.
    """

    argmax: Tensor
    mass: Tensor
    logits: Tensor


Reader = Callable[[Question], Reading | None]
Opener = Callable[["HFModel"], Reader]


@dataclass(frozen=True)
class Way:
    """A way to read one question.

    Attributes:
        open: makes a reader over the weights of a loaded model; what it does is not timed.
        matrices: attention matrices held at once, of all layers or of one (with its copies).
        vocabularies: whole `[pos, d_vocab]` arrays held at once.
    """

    open: Opener
    matrices: str = "none"
    vocabularies: int = 0

    def arrays(self, spec: "ModelSpec", n_tokens: int, itemsize: int) -> int:
        """Bytes of the largest arrays that it holds at once, by calculation."""
        held = {"none": 0, "one layer": 4, "all layers": len(spec.attention_layers) + 3}
        one = spec.n_heads * n_tokens**2
        return itemsize * (held[self.matrices] * one + self.vocabularies * n_tokens * spec.d_vocab)


def backend(model: "HFModel", name: str) -> "HFModel":
    """The loaded model under another backend, over the same weights."""
    import interp

    if name == "hf":
        return model
    return interp.load(model.hf, tokenizer=model.tokenizer, backend=name)


def behind(model: "HFModel", prefix: "Prefix | None", question: Question) -> Reading:
    """The reading by our own contract, off a context that was read, or (None) with it."""
    suffix = list(question.asked) if prefix is not None else question.tokens
    rows = range(len(suffix) - question.n_rows, len(suffix))
    keys = torch.tensor(question.needle).expand(len(rows), -1)
    trace = model.extend(prefix, [suffix], read=[RowRead((tuple(rows),), (keys,))], logits=[rows])
    found, layers = trace.rows[0], list(model.spec.attention_layers)
    assert found.argmax is not None and found.at_keys is not None
    return Reading(found.argmax[layers], found.at_keys[layers].sum(-1), trace.logits)


def _bare(model: "HFModel") -> Reader:
    def read(question: Question) -> None:
        with torch.no_grad():
            out = model.hf(_ids(model, question), use_cache=True, logits_to_keep=1)
        out.logits.cpu()

    return read


def _engine(model: "HFModel") -> Reader:
    return lambda question: behind(model, model.prefill(question.context), question)


def _library(name: str) -> Opener:
    def opened(model: "HFModel") -> Reader:
        other = backend(model, name)
        return lambda question: behind(other, None, question)

    return opened


def _plain_transformers(model: "HFModel") -> Reader:
    def read(question: Question) -> Reading:
        with eager(model), torch.no_grad():
            out = model.hf(
                _ids(model, question), use_cache=False, output_attentions=True,
                logits_to_keep=question.n_rows,
            )  # fmt: skip
        return _reduced([a for a in out.attentions if a is not None], out.logits, question)

    return read


def _plain_lens(model: "HFModel") -> Reader:
    from interp.backends.lens import boot

    bridge = boot(model.hf, model.spec)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in model.spec.attention_layers]

    def read(question: Question) -> Reading:
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(
                _ids(model, question), names_filter=lambda name: name.endswith("hook_pattern")
            )
        return _reduced([cache[n] for n in names if n in cache], logits, question)

    return read


def _plain_nnsight(model: "HFModel") -> Reader:
    from interp.backends.nns import NNsightTap, wrap
    from interp.backends.twins import eager_attention, shared_copy

    envoy = wrap(shared_copy(model.hf))
    attention = [s.attention for s in NNsightTap(envoy, model.hf, model.anatomy).stops]

    def read(question: Question) -> Reading:
        with eager_attention(envoy._module), torch.no_grad():
            kept, logits = _saved(envoy, attention, _ids(model, question), question.n_rows)
        return _reduced(kept, logits, question)

    return read


def _saved(envoy: Any, attention: Sequence[Any], ids: Tensor, n_rows: int) -> tuple[Any, Tensor]:
    """One trace: every pattern, and the logits of the last rows."""
    kept: Any = []
    with envoy.trace(ids, use_cache=False, logits_to_keep=n_rows):
        kept = kept.save()
        for each in attention:
            kept.append(each.output[1])
        logits = envoy.output.logits.save()
    return kept, logits


def _reduced(patterns: Sequence[Tensor], logits: Tensor, question: Question) -> Reading:
    """Patterns `[1, head, query, key]` of all layers, down to the answer's rows.

    Raises:
        ModelError: the library gave something else.
    """
    n = len(question.tokens)
    shapes = {tuple(getattr(p, "shape", ()))[-2:] for p in patterns}
    if shapes != {(n, n)}:
        raise ModelError(f"no {n} x {n} patterns of this model were given, but {shapes or 'none'}")
    last = slice(n - question.n_rows, n)
    rows = torch.stack([p[0, :, last].float() for p in patterns])
    mass = rows[..., question.needle.start : question.needle.stop].sum(-1)
    return Reading(rows.argmax(-1).cpu(), mass.cpu(), logits[0, -question.n_rows :].float().cpu())


def _ids(model: "HFModel", question: Question) -> Tensor:
    return torch.tensor([question.tokens], device=model.device)


WAYS: dict[str, Way] = {
    "bare": Way(_bare),
    "hf": Way(_engine),
    "lens": Way(_library("lens"), "one layer", 2),
    "nnsight": Way(_library("nnsight"), "one layer", 2),
    "plain transformers": Way(_plain_transformers, "all layers"),
    "plain lens": Way(_plain_lens, "all layers", 2),
    "plain nnsight": Way(_plain_nnsight, "all layers"),
}
"""The unit; a question through each backend; what users of each library write."""
BACKENDS = ("hf", "lens", "nnsight")
PLAIN = ("plain transformers", "plain lens", "plain nnsight")
