"""Does the instrument measure this model rightly? A quick check at load, a full one on demand.

Each check compares the instrument with the bare model under transformers' own eager attention,
which shares no code with ours.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import ModelError
from interp.sites import Edit, Head, Site
from interp.trace import RowRead, SiteRead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp.backends.hf import HFModel
    from interp.trace import Prefix

N_TOKENS = 48


@dataclass(frozen=True)
class Check:
    """One line of a self-check: what was compared, whether it held, and the figures."""

    name: str
    passed: bool
    detail: str


def tolerance(model: "HFModel", scale: float) -> float:
    """Largest difference taken as rounding: relative to the spread of what is compared.

    Half precision differs between attention implementations by some percent of that spread.
    """
    return scale * (2e-4 if model.dtype == torch.float32 else 0.15)


def probe_tokens(model: "HFModel", n_tokens: int = N_TOKENS, seed: int = 0) -> Tensor:
    """Random tokens, in the middle of which nothing is special."""
    generator = torch.Generator().manual_seed(seed)
    limit = model.spec.context_length or n_tokens
    return torch.randint(model.spec.d_vocab // 2, (min(n_tokens, limit),), generator=generator)


def eager(model: "HFModel") -> AbstractContextManager[None]:
    """The bare model with transformers' eager attention, for comparison; restored on exit."""
    return model.attending("eager")


def check_wrap(model: "HFModel") -> None:
    """Prefill + extend against one bare forward; raise ModelError where they disagree."""
    for check in (check_logits(model), check_rows(model)):
        if not check.passed:
            raise ModelError(
                f"{model.spec.architecture} is not measured rightly ({check.name}: "
                f"{check.detail}); this architecture is not supported"
            )


def check_logits(model: "HFModel") -> Check:
    """Logits of prefill + extend equal those of one bare eager forward."""
    tokens = probe_tokens(model)
    split = len(tokens) // 2
    with eager(model):
        bare = model.hf(tokens[None].to(model.device), use_cache=False).logits[0, split:]
    prefix = model.prefill(tokens[:split], chunk=max(1, split // 2))
    suffix = tokens[split:].tolist()
    trace = model.extend(prefix, [suffix, suffix], logits=[range(len(suffix))] * 2)
    off = (trace.logits.view(2, *bare.shape) - bare.float().cpu()).abs()
    exact = model.dtype == torch.float32
    # rounding to half precision alone moves some of a million logits by half their spread, in the
    # bare model as well: there a row is judged by its root mean square
    worst = (off if exact else off.square().mean(-1).sqrt()).max().item()
    limit = tolerance(model, bare.float().std().item())
    return Check(
        "logits: prefill + extend = one bare eager forward",
        worst <= limit,
        f"largest {'difference' if exact else 'mean difference of a row'} {worst:.1e}, "
        f"allowed {limit:.1e}",
    )


def check_rows(model: "HFModel") -> Check:
    """Attention rows equal eager attention, argmax included."""
    tokens = probe_tokens(model)
    split, n = len(tokens) // 2, len(tokens)
    with eager(model):
        out = model.hf(tokens[None].to(model.device), use_cache=False, output_attentions=True)
    bare = [a for a in out.attentions if a is not None]
    if len(bare) != len(model.spec.attention_layers):
        return Check("rows = eager attention", True, "eager attention shows no rows; not compared")
    expected = torch.stack([a[0, :, split:].float().cpu() for a in bare])
    prefix = model.prefill(tokens[:split])
    read = RowRead((tuple(range(n - split)),), keys=(torch.arange(n).expand(n - split, -1),))
    rows = model.extend(prefix, [tokens[split:].tolist()], read=[read]).rows[0]
    layers = list(model.spec.attention_layers)
    assert rows.at_keys is not None and rows.argmax is not None
    got = rows.at_keys[layers]
    exact = model.dtype == torch.float32
    off = (got - expected).abs().amax(-1)
    at_ours = expected.gather(-1, rows.argmax[layers][..., None])[..., 0]
    below = expected.amax(-1) - at_ours
    # as for logits: in half precision single rows of deep layers differ by rounding alone
    worst, missed = ((x.max() if exact else x.mean()).item() for x in (off, below))
    limit = tolerance(model, 0.1)
    return Check(
        "rows = eager attention",
        worst <= limit and missed <= limit,
        f"largest difference {'' if exact else 'of a row, mean, '}{worst:.1e}, allowed "
        f"{limit:.1e}; same argmax in {(got.argmax(-1) == expected.argmax(-1)).float().mean():.2%}",
    )


def check_row_sums(model: "HFModel") -> Check:
    """Every row sums to one, or to less where a sink takes a share."""
    tokens = probe_tokens(model)
    n = len(tokens)
    prefix = model.prefill(tokens[: n - 4])
    read = RowRead((tuple(range(4)),), keys=(torch.arange(n).expand(4, -1),))
    rows = model.extend(prefix, [tokens[n - 4 :].tolist()], read=[read]).rows[0]
    assert rows.at_keys is not None
    sums = rows.at_keys[list(model.spec.attention_layers)].sum(-1)
    good = bool((sums <= 1 + 1e-4).all())
    if not model.spec.has_sinks:
        good &= bool((sums - 1).abs().max() < 1e-4)
    return Check("rows sum to one", good, f"sums {sums.min():.6f}-{sums.max():.6f}")


def check_windows(model: "HFModel") -> Check:
    """No weight outside a sliding window."""
    widths = sorted({w for w in model.spec.windows if w is not None})
    if not widths:
        return Check("sliding windows", True, "none: every layer sees the whole context")
    limit = model.spec.context_length or 2 * widths[0]
    n = min(widths[0] + 16, limit)
    tokens = probe_tokens(model, n)
    prefix = model.prefill(tokens[:-1])
    read = RowRead(((0,),), keys=(torch.arange(n)[None],))
    rows = model.extend(prefix, [[int(tokens[-1])]], read=[read]).rows[0]
    assert rows.at_keys is not None
    leaks = [
        rows.at_keys[layer, :, 0, : n - width].sum().item()
        for layer, width in enumerate(model.spec.windows)
        if width is not None and n > width
    ]
    if not leaks:
        return Check("sliding windows", True, f"widths {widths}, none shorter than the context")
    return Check("sliding windows", max(leaks) == 0, f"widths {widths}, leak {max(leaks):.1e}")


def check_groups(model: "HFModel") -> Check:
    """An edit of one query head changes that head's output and no other's."""
    layer, head = model.spec.attention_layers[0], model.spec.n_heads - 1
    tokens = probe_tokens(model)
    prefix = model.prefill(tokens[:-1])
    suffix = [[int(tokens[-1])]] * 2
    site = Site("z", layer)
    edit = Edit(Site("z", layer, head), "zero", rows=(1,))
    read = SiteRead((site,), ((0,), (0,)))
    z = model.extend(prefix, suffix, read=[read], edits=[edit]).sites[site]
    others = [h for h in range(model.spec.n_heads) if h != head]
    same = torch.allclose(z[0, others], z[1, others], atol=1e-5)
    good = same and not z[1, head].any() and z[0, head].any()
    groups = f"{model.spec.n_heads} query heads share {model.spec.n_kv_heads} key-value heads"
    return Check("one head edited, no other changed", bool(good), groups)


def check_edits(
    model: "HFModel",
    prefix: "Prefix",
    suffix: "Sequence[int]",
    edits: "Sequence[Edit]",
    *,
    may_be_idle: bool = False,
) -> Check:
    """Edits of heads change the heads and positions that they name, and nothing else there.

    Each layer is edited by itself, so that nothing flows into it from another edit. The published
    masking was a silent no-op on three families; this is what would have shown it. Edits of `k`
    and `v` may also change later positions of their head.

    Args:
        may_be_idle: edits whose value depends on the prompt (another prompt's activation, a
            knock-out of keys) may leave every head as it is: one that never looked there.
    """
    moved, idle, n_heads = [], [], 0
    for layer in sorted({e.site.layer for e in edits}):
        own = [replace(e, rows=(1,)) for e in edits if e.site.layer == layer]
        heads = sorted({e.site.head for e in own if e.site.head is not None})
        changed, allowed, below = _changes(model, prefix, suffix, own)
        n_heads += len(heads)
        idle += [str(Head(layer, h)) for h in heads if not (changed & allowed)[:, h].any()]
        if (changed & ~allowed).any() or below:
            moved.append(f"something else in layer {layer} changed")
    all_idle = len(idle) == n_heads and not may_be_idle
    faults = [*moved, *([f"{', '.join(idle)} not changed"] if all_idle else [])]
    told = f"{n_heads - len(idle)} of {n_heads} heads changed where named, nothing else"
    kept = f"; as they were: {', '.join(idle)}" if idle else ""
    detail = "; ".join(faults) or told + kept
    return Check("edits change what they name and nothing else", not faults, detail)


def _changes(
    model: "HFModel", prefix: "Prefix", suffix: "Sequence[int]", edits: "Sequence[Edit]"
) -> tuple[Tensor, Tensor, bool]:
    """Of edits in one layer: changed places, places that may change, changes in layers below."""
    layer, n = edits[0].site.layer, len(suffix)
    below = [Site("z", lower) for lower in range(3, layer, 4)]
    site = Site("z", layer)
    read = SiteRead((site, *below), (tuple(range(n)),) * 2)
    seen = model.extend(prefix, [suffix, suffix], read=[read], edits=edits).sites
    changed = _differs(model, *seen[site].split(n))
    allowed = torch.zeros_like(changed)
    for edit in edits:
        places = [p % n for p in (range(n) if edit.positions is None else edit.positions)]
        allowed[places, edit.site.head] = True
        if edit.site.kind in ("k", "v"):
            allowed[min(places) :, edit.site.head] = True
    return changed, allowed, any(bool(_differs(model, *seen[s].split(n)).any()) for s in below)


def _differs(model: "HFModel", a: Tensor, b: Tensor) -> Tensor:
    """Where two rows of a packed forward differ by more than rounding: `[pos, head]`."""
    rounding = 1e-4 if model.dtype == torch.float32 else 2e-2
    return (a - b).abs().amax(-1) > rounding * a.abs().max()
