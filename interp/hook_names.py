"""TransformerLens' names for places: hook points in and out, heads as pairs.

Strings only, so that a saved result can be told in TransformerLens' words without loading it.
"""

import re
from collections.abc import Sequence
from typing import Any

from interp.errors import SiteError
from interp.sites import Head, Site, SiteKind

HOOKS: dict[SiteKind, str] = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "attn.hook_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "mlp.hook_out",
    "resid_post": "hook_resid_post",
}
"""Hook point of each site kind, inside `blocks.LAYER.`. `q` and `k` are what the attention sees,
behind the rotary embedding; a model without one has `attn.hook_q` and `attn.hook_k` there.
`attn_out` and `mlp_out` are what the modules return: TransformerLens' `hook_attn_out` and
`hook_mlp_out` are behind the norm that some families put there."""

BARE = {"q": "attn.hook_q", "k": "attn.hook_k"}
"""The hook points of queries and keys where there is no rotary embedding."""

_KINDS: dict[str, SiteKind] = {
    **{name: kind for kind, name in HOOKS.items()},
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.o.hook_in": "z",
}
_NAME = re.compile(r"^blocks\.(\d+)\.(.+)$")


def hook_name(site: Site, *, rotary: bool = True) -> str:
    """`blocks.5.attn.hook_z` of `L5.z`; the head of a site is an index into what is seen there."""
    inside = HOOKS[site.kind] if rotary else BARE.get(site.kind, HOOKS[site.kind])
    return f"blocks.{site.layer}.{inside}"


def site_at(name: str, head: int | None = None, *, rotary: bool = True) -> Site:
    """The site at a hook point, of one head of it or (None) of all.

    Raises:
        SiteError: a hook point that is no site here, or the queries or keys before a rotary
            embedding.
    """
    match = _NAME.match(name)
    inside = match[2] if match else name
    known = _KINDS | ({} if rotary else {v: k for k, v in BARE.items()})
    if match is None or inside not in known:
        if inside in BARE.values():
            raise SiteError(
                f"{name} is taken before the rotary embedding; the attention sees "
                f"{name.replace('hook_', 'hook_rot_')} (rotary=False for a model without one)"
            )
        raise SiteError(
            f"{name!r} is no site here; known: {', '.join(f'blocks.L.{n}' for n in known)}"
        )
    return Site(known[inside], int(match[1]), head)  # type: ignore[arg-type]


def lens_heads(heads: Sequence[Head]) -> list[tuple[int, int]]:
    """`[(layer, head), ...]`, as TransformerLens' functions index their tensors."""
    return [(h.layer, h.head) for h in heads]


def ranked_heads(scores: Any, top: int | None = None) -> list[Head]:
    """Heads by a tensor `[layer, head]` of scores, highest first; NaN never.

    Raises:
        SiteError: scores of another shape.
    """
    import numpy as np

    values = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, dtype=float)
    if values.ndim != 2:
        raise SiteError(f"scores [layer, head] expected, got shape {values.shape}")
    order = np.argsort(-values, axis=None, kind="stable")
    order = order[~np.isnan(values.ravel()[order])]
    pairs = [divmod(int(i), values.shape[1]) for i in order[:top]]
    return [Head(layer, head) for layer, head in pairs]
