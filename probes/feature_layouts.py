"""Layouts of published dictionaries: Gemma Scope 1 and 2, sparsify, dictionary_learning.

Their libraries (MIT or Apache licensed) are not needed. SAELens' has a file of its own.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.errors import ResultError
from probes.feature_drafts import (
    SAME,
    Draft,
    Tensors,
    check_setting,
    damaged,
    normed,
    read_pickled,
    read_safetensors,
    read_settings,
    renamed,
)
from probes.feature_sites import hooks_of_module

# -- Gemma Scope -------------------------------------------------------------------------------

_CUT = {**SAME, "threshold": "threshold"}
_GEMMA_PLACES: dict[str, tuple[str, str | None]] = {
    "transcoders?": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
    "att|attn": ("blocks.{}.attn.hook_z", None),
    "mlp": ("blocks.{}.hook_mlp_out", None),
    "": ("blocks.{}.hook_resid_post", None),
}
"""By a word of the path; the residual stream behind the layer where there is none."""


def read_gemma_scope(folder: Path) -> Draft:
    """Gemma Scope 1 (arXiv 2408.05147): `layer_N/width_W/average_l0_K/params.npz`, JumpReLU.

    There is no config: the layer and the place are read off the path. Transcoders read the normed
    input without the norm's gain and reconstruct what is added to the residual stream.
    """
    path = folder / "params.npz"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:  # zip, npy and pickle errors have nothing in common to catch
        raise damaged(path, error) from None
    tensors = renamed(weights, _CUT, folder)
    parts = folder.absolute().parts[-6:]
    told = [m for p in parts if (m := re.match(r"(layer|width|average_l0)_(\w+)$", p))]
    about = {"name": "/".join(m[0] for m in told), **{m[1]: m[2] for m in told}}
    if "embedding" in parts:
        raise ResultError(f"{folder} reads the unscaled embedding, which no site is; use a layer's")
    if "layer" not in about:
        return Draft("jumprelu", tensors, hook=None, about=about)
    pair = next(pair for word, pair in _GEMMA_PLACES.items() if _says(parts, word))
    hook, hook_out = (None if p is None else p.format(about["layer"]) for p in pair)
    return Draft(
        "jumprelu", tensors, hook=hook, hook_out=hook_out, transcoder=hook_out is not None,
        about=about,
    )  # fmt: skip


def _says(parts: tuple[str, ...], word: str) -> bool:
    return not word or any(re.search(rf"(^|[-_])({word})([-_]|$)", part) for part in parts)


_GEMMA_2_PLACES: dict[str, tuple[str, str | None]] = {
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}
"""By the folder above; `_all` may follow. What the config says goes before it."""


def read_gemma_scope_2(folder: Path) -> Draft:
    """Gemma Scope 2: `params.safetensors` in lower case, and mostly a `config.json`; JumpReLU.

    The affine skip is `[d_in, d_out]`. Cross-layer transcoders are refused.
    """
    path = folder / "config.json"
    config = read_settings(path) if path.exists() else {}
    check_setting(config, "architecture", ("jump_relu",), path)
    weights = read_safetensors(folder / "params.safetensors")
    lower = {name: name.lower() for name in _CUT}
    tensors = renamed(weights, lower, folder, perhaps={"skip": "affine_skip_connection"})
    if tensors["W_dec"].ndim == 3:
        raise ResultError(f"{folder} holds a cross-layer transcoder; use one of a single layer")
    where = folder.absolute()
    layer = re.match(r"layer_(\d+)", where.name)
    parent = where.parent.name.removesuffix("_all")
    pair = _GEMMA_2_PLACES.get(parent, (None, None)) if layer else (None, None)
    hook, hook_out = (None if p is None or layer is None else p.format(layer[1]) for p in pair)
    hook_out = config.get("hf_hook_point_out", hook_out)
    return Draft(
        "jumprelu",
        tensors,
        hook=config.get("hf_hook_point_in", hook),
        hook_out=hook_out,
        transcoder=hook_out is not None or parent == "transcoder" or "skip" in tensors,
        about={"name": f"{where.parent.name}/{where.name}", **config},
    )


# -- sparsify ----------------------------------------------------------------------------------

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}


def read_sparsify(folder: Path) -> Draft:
    """Sparsify: `cfg.json` and `sae.safetensors`, in a folder named for a module; TopK.

    An autoencoder reads the module's output minus b_dec, a transcoder its input as it is. `W_skip`
    is `[d_out, d_in]`.
    """
    path = folder / "cfg.json"
    config = read_settings(path)
    check_setting(config, "activation", ("topk",), path)
    for flag in ("signed", "embed_skip", "gram_lookup"):
        check_setting(config, flag, (False,), path)
    weights = read_safetensors(folder / "sae.safetensors")
    names = {**_LINEAR, "W_dec": "W_dec", "b_dec": "b_dec"}
    tensors = renamed(weights, names, folder, perhaps={"skip": "W_skip"})
    transcoder = bool(config.get("transcode", "skip" in tensors))
    hook, hook_out = hooks_of_module(folder.absolute().name, transcoder=transcoder)
    return Draft(
        "topk",
        {n: t.T if n in ("W_enc", "skip") else t for n, t in tensors.items()},
        hook=hook,
        hook_out=hook_out,
        transcoder=transcoder,
        k=config.get("k"),
        centred=not transcoder,
        about=config,
    )


# -- dictionary_learning -----------------------------------------------------------------------

_CLASSES: dict[str, tuple[str, str, bool]] = {
    "AutoEncoder": ("relu", "bias", True),
    "AutoEncoderNew": ("relu", "decoder.bias", False),
    "AutoEncoderTopK": ("topk", "b_dec", True),
    "BatchTopKSAE": ("batchtopk", "b_dec", True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", "b_dec", True),
    "JumpReluAutoEncoder": ("jumprelu", "b_dec", False),
}
"""Activation, name of the decoder's bias, and whether that is subtracted from the input."""
_MODULES = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "mlp_out": "mlp.hook_out",
    "attn_out": "attn.hook_out",
}


def read_dictionary_learning(folder: Path) -> Draft:
    """dictionary_learning: `ae.pt` and `config.json`; the layer and module are the trainer's."""
    path = folder / "config.json"
    trainer = read_settings(path).get("trainer") or {}
    name = trainer.get("dict_class", "without dict_class")
    check_setting({"dict_class": name}, "dict_class", tuple(_CLASSES), path)
    activation, bias, centred = _CLASSES[name]
    weights = read_pickled(folder / "ae.pt")
    k = int(weights["k"]) if "k" in weights else trainer.get("k")
    return Draft(
        activation,
        _learned(weights, activation, bias, folder),
        hook=_learned_hook(trainer),
        k=k if activation == "topk" else None,
        centred=centred,
        about={n: v for n, v in trainer.items() if isinstance(v, str | int | float | bool)},
    )


def _learned(weights: Tensors, activation: str, bias: str, folder: Path) -> Tensors:
    """Weights of modules or plain matrices. JumpReLU's features are times the decoder's norms."""
    cut = {"threshold": "threshold"} if activation in ("batchtopk", "jumprelu") else {}
    idle = ("k", "threshold", "group_sizes")
    if "W_enc" in weights:
        tensors = renamed(weights, {**SAME, **cut}, folder, idle=idle)
    else:
        names = {**_LINEAR, "W_dec": "decoder.weight", "b_dec": bias, **cut}
        tensors = renamed(weights, names, folder, idle=idle)
        tensors = {n: t.T if n in ("W_enc", "W_dec") else t for n, t in tensors.items()}
    if activation != "jumprelu":
        return tensors
    return normed({**tensors, "threshold": tensors["threshold"] * tensors["W_dec"].norm(dim=1)})


def _learned_hook(trainer: Mapping[str, Any]) -> str | None:
    """The hook of a trainer's module, such as `resid_post_layer_8`, which is a module's output."""
    module, layer = str(trainer.get("submodule_name")), trainer.get("layer")
    suffix = next((hook for word, hook in _MODULES.items() if word in module), None)
    return None if suffix is None or layer is None else f"blocks.{layer}.{suffix}"
