"""Where dictionaries read: names of hooks and modules in their files, and the sites that they are.

A name is not enough. TransformerLens' `hook_mlp_out` lies behind the norm that some architectures
put after the feed-forward part, `ln2.hook_normalized` before the gain of the norm in front of it;
a dictionary read off the nearest site there would give wrong features without a word. What is
known to differ stands in the table, and `check_dictionary` refuses it.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import ResultError, SiteError
from interp.sites import Site

if TYPE_CHECKING:
    from interp.spec import ModelSpec
    from probes.features import Dictionary

POST_NORMED = ("Gemma2", "Gemma3", "Glm4", "Olmo2", "Olmo3", "Exaone4")
"""Architectures with a norm between a sublayer's output and the residual stream."""


@dataclass(frozen=True)
class Hook:
    """The site kind that a hook is, or why none is; what differs, and in which architectures."""

    kind: str | None
    differs: str = ""
    where: tuple[str, ...] = ("",)


_NO_GAIN = "is taken before the gain of the norm, the site behind it"
_BEHIND = "is taken behind the norm that follows, the site before it"
_HEADS = Hook(None, "the concatenated head outputs of a layer are not supported; use a dictionary "
              "of the residual stream or of the feed-forward part")  # fmt: skip
HOOKS: dict[str, Hook] = {
    "hook_resid_pre": Hook("resid_pre"),
    "hook_resid_mid": Hook("resid_mid"),
    "hook_resid_post": Hook("resid_post"),
    "attn.hook_out": Hook("attn_out"),
    "mlp.hook_in": Hook("mlp_in"),
    "mlp.hook_out": Hook("mlp_out"),
    "hook_attn_out": Hook("attn_out", _BEHIND, POST_NORMED),
    "hook_mlp_out": Hook("mlp_out", _BEHIND, POST_NORMED),
    "ln2.hook_normalized": Hook("mlp_in", _NO_GAIN),
    "hook_in": Hook("resid_pre"),
    "hook_out": Hook("resid_post"),
    "attn.hook_z": _HEADS,
    "output": Hook("resid_post"),
    "pre_feedforward_layernorm.output": Hook("mlp_in"),
    "post_feedforward_layernorm.output": Hook("mlp_out", _BEHIND, POST_NORMED),
    "self_attn.o_proj.input": _HEADS,
}
"""By what follows the layer: TransformerLens' names, then transformers' as Gemma Scope 2 has them.
The first name of a kind is the one that is written."""

_LAYER = re.compile(r"^(?:\w+\.)*(?:blocks|layers|h)\.(\d+)\.(.+)$")
_MODULE = re.compile(r"^(?:\w+\.)*(?:blocks|layers|h)\.(\d+)(?:\.(\w+))?$")
_SUBLAYER = {"mlp": "mlp", "feed_forward": "mlp", "attn": "attn", "self_attn": "attn",
             "attention": "attn"}  # fmt: skip


def site_of_hook(name: str | None) -> Site | None:
    """The site of a hook such as `blocks.15.hook_resid_post`; None for a name that is not known.

    Raises:
        ResultError: a place that is known and that no site is.
    """
    found = _hook(name)
    if found is None:
        return None
    layer, hook = found
    if hook.kind is None:
        raise ResultError(f"{name}: {hook.differs}")
    return Site(hook.kind, layer)  # type: ignore[arg-type]


def hook_of_site(site: Site) -> str:
    """The name under which a site is written: `blocks.15.hook_resid_post`.

    Raises:
        ResultError: a site of heads.
    """
    for suffix, hook in HOOKS.items():
        if hook.kind == site.kind:
            return f"blocks.{site.layer}.{suffix}"
    raise ResultError(f"a dictionary at {site} has no name in a file; use a site of a whole layer")


def hooks_of_module(name: str, *, transcoder: bool) -> tuple[str | None, str | None]:
    """Hooks read and reconstructed by a dictionary of a module such as `layers.15.mlp`."""
    match = _MODULE.match(name)
    if match is None:
        return None, None
    layer, module = match.groups()
    part = None if module is None else _SUBLAYER.get(module)
    if transcoder:  # only a feed-forward part maps each position by itself
        pair = ("mlp.hook_in", "mlp.hook_out") if part == "mlp" else None
        return (
            (None, None)
            if pair is None
            else (f"blocks.{layer}.{pair[0]}", f"blocks.{layer}.{pair[1]}")
        )
    if module is None:
        return f"blocks.{layer}.hook_resid_post", None
    return (None if part is None else f"blocks.{layer}.{part}.hook_out"), None


def check_dictionary(dictionary: "Dictionary", spec: "ModelSpec") -> None:
    """Refuse a dictionary that does not belong to a model: widths, layers, places.

    Raises:
        SiteError: one line with both numbers, and what to do.
    """
    name = dictionary.name
    if dictionary.site is None:
        raise SiteError(f"{name} does not say where it reads; name its site when reading it")
    ends = [(dictionary.site, dictionary.d_in, "hook_name")]
    if dictionary.is_transcoder:
        if dictionary.out_site is None:
            raise SiteError(f"{name} is a transcoder and does not say what it reconstructs")
        ends.append((dictionary.out_site, dictionary.d_out, "hook_name_out"))
    for site, width, key in ends:
        if width != spec.d_model:
            raise SiteError(
                f"{name} has width {width} at {site}, this model {spec.d_model}; use a dictionary "
                "that was trained on this model"
            )
        if not 0 <= site.layer < spec.n_layers:
            raise SiteError(
                f"{name} belongs to layer {site.layer}, this model has layers 0-"
                f"{spec.n_layers - 1}; use a dictionary that was trained on this model"
            )
        _check_place(name, dictionary.about.get(key), site, spec)


def _check_place(name: str, hook_name: Any, site: Site, spec: "ModelSpec") -> None:
    found = _hook(hook_name)
    if found is not None and found[1].differs and spec.architecture.startswith(found[1].where):
        raise SiteError(
            f"{name}: {hook_name} of {spec.architecture} {found[1].differs} ({site}); use a "
            "dictionary of the residual stream, or name the site when reading if it is right"
        )


def _hook(name: Any) -> tuple[int, Hook] | None:
    match = _LAYER.match(name) if isinstance(name, str) else None
    hook = None if match is None else HOOKS.get(match[2])
    return None if match is None or hook is None else (int(match[1]), hook)
