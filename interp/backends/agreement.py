"""Does a library compute what the plain model of the same weights computes, and if not, from where?

Silently wrong wrappers are known: adapters that miss a family's peculiarity (gpt-oss in
TransformerLens 3.2), processed weights, a hook or an edit that was left on. So every wrapper is
held against the plain model of the same weights when it is loaded.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.backends.residual import visiting
from interp.backends.twins import eager_attention, evaluating
from interp.checks import probe_tokens, tolerance
from interp.errors import ModelError
from interp.sites import Site
from interp.trace import SiteRead

if TYPE_CHECKING:
    from interp.backends.whole import WholeModel


def check_agrees(
    theirs: "WholeModel", *, what: str, remedy: str = "load the transformers model itself"
) -> None:
    """Logits of one forward equal those of the plain model, up to a constant for each token.

    Args:
        what, remedy: the wrapper, and what to do instead, for the message.

    Raises:
        ModelError: they do not; it says at which site the difference begins.
    """
    tokens = probe_tokens(theirs)
    everywhere = [range(len(tokens))]
    bare = _plain(theirs, tokens, {})
    got = theirs.extend(None, [tokens.tolist()], logits=everywhere).logits
    # processed weights may shift all logits of a token by the same amount
    off = _centred(got) - _centred(bare)
    limit = tolerance(theirs, bare.std().item())
    worst = (off.abs() if theirs.dtype == torch.float32 else off.square().mean(-1).sqrt()).max()
    if worst <= limit:
        return
    raise ModelError(
        f"{what} does not compute what the plain {theirs.spec.architecture} of its own weights "
        f"does: logits differ by {worst:.2g}, {limit:.1g} is allowed; it begins at "
        f"{_beginning(theirs, tokens)}; {remedy}"
    )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _plain(theirs: "WholeModel", tokens: Tensor, seen: dict[Site, Tensor]) -> Tensor:
    """Logits `[pos, d_vocab]` of the plain model; fills `seen`, whose keys say what to keep."""
    visits = {site: [_keep(site, seen)] for site in seen}
    with evaluating(theirs.hf), eager_attention(theirs.hf), visiting(theirs.anatomy, visits):
        out = theirs.hf(tokens[None].to(theirs.device), use_cache=False)
    return out.logits[0].float().cpu()


def _keep(site: Site, seen: dict[Site, Tensor]) -> Callable[[Tensor], Tensor]:
    def visit(x: Tensor) -> Tensor:
        seen[site] = x[0].detach().float().cpu()
        return x

    return visit


def _beginning(theirs: "WholeModel", tokens: Tensor) -> str:
    """The first site at which the two differ."""
    places = (tuple(range(len(tokens))),)
    kinds = [("resid_pre", 0)]
    for layer in range(theirs.spec.n_layers):
        kinds += [(k, layer) for k in ("attn_out", "mlp_out", "resid_post")]
    sites = [
        Site(kind, layer)  # type: ignore[arg-type]
        for kind, layer in kinds
        if theirs.tap.refusal(kind, layer, verb="read") is None
        and not (kind == "mlp_out" and theirs.anatomy.mlp[layer] is None)
    ]
    expected: dict[Site, Tensor] = {site: torch.empty(0) for site in sites}
    _plain(theirs, tokens, expected)
    got: Mapping[Site, Tensor] = theirs.extend(
        None, [tokens.tolist()], read=[SiteRead(tuple(sites), places)]
    ).sites
    for site in sites:
        scale = float(expected[site].std())
        if (got[site].float() - expected[site]).abs().max() > 10 * tolerance(theirs, scale):
            return f"{site}{' (the embeddings)' if site.kind == 'resid_pre' else ''}"
    return "the final norm or the unembedding: all layers agree"
