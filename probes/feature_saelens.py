"""The layout of SAELens 6 (MIT), read and written: `cfg.json` and `sae_weights.safetensors`.

Since version 6 what belongs to the model stands under `metadata`, before it beside the rest. What
the layout can say and this package cannot do is refused by name: a setting that is skipped gives
wrong features without a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import ResultError
from interp.store import write_folder, write_json
from probes.feature_drafts import (
    SAME,
    Draft,
    Tensors,
    check_setting,
    normed,
    read_safetensors,
    read_settings,
    renamed,
)
from probes.feature_sites import hook_of_site, site_of_hook

if TYPE_CHECKING:
    from probes.features import Dictionary

SETTINGS, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"

_KINDS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
}
"""Our activation by SAELens' architecture; `_transcoder` or `_skip_transcoder` may follow."""
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", False, "expected_average_only_in", True),
    "reshape_activations": ("none",),
    "hook_head_index": (),
    "finetuning_scaling_factor": (False,),
    "activation_fn": ("relu", "topk"),
    "activation_fn_str": ("relu", "topk"),
}
_USED = (
    *_UNDERSTOOD, "architecture", "d_in", "d_out", "d_sae", "dtype", "device", "k",
    "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "activation_fn_kwargs", "metadata",
    "norm_scaling_factor", "hook_name", "hook_point", "hook_name_out",
)  # fmt: skip
"""Settings that the weights do not need any more once they are read."""


def read_saelens(folder: Path) -> Draft:
    """An autoencoder or transcoder. `W_skip` is `[d_out, d_in]`; b_dec is taken off the input.

    Raises:
        ResultError: see `feature_drafts`; a setting that is not supported.
    """
    path = folder / SETTINGS
    config = read_settings(path)
    config = {**(config.get("metadata") or {}), **config}
    for setting, good in _UNDERSTOOD.items():
        check_setting(config, setting, good, path)
    transcoder, activation = _kind(config, path)
    tensors = _tensors(read_safetensors(folder / WEIGHTS), activation, folder)
    if "topk" in activation and config.get("rescale_acts_by_decoder_norm"):
        tensors = normed(tensors)
    arguments = config.get("activation_fn_kwargs") or {}
    return Draft(
        activation,
        tensors,
        hook=config.get("hook_name") or config.get("hook_point"),
        hook_out=config.get("hook_name_out"),
        transcoder=transcoder,
        k=config.get("k", arguments.get("k")) if activation == "topk" else None,
        centred=bool(config.get("apply_b_dec_to_input", True)) and not transcoder,
        scale=_scale(config, folder, transcoder=transcoder),
        about={k: v for k, v in config.items() if k not in _USED},
    )


def write_saelens(dictionary: "Dictionary", folder: Path) -> Path:
    """Write a dictionary, whole or not at all; a scale is folded into the weights.

    SAELens knows no TopK transcoder: such a file has the architecture `topk_transcoder`, which it
    refuses and `read_saelens` reads.

    Raises:
        ResultError: the folder holds something else than a dictionary, or cannot be written.
    """
    if folder.exists() and not (folder / WEIGHTS).exists() and any(folder.iterdir()):
        raise ResultError(f"{folder} holds other files than a dictionary; name another folder")
    config = _config(dictionary)

    def fill(fresh: Path) -> None:
        from safetensors.torch import save_file

        save_file(_folded(dictionary), fresh / WEIGHTS)
        write_json(fresh / SETTINGS, config)

    return write_folder(folder, fill)


def _kind(config: Mapping[str, Any], path: Path) -> tuple[bool, str]:
    """Whether the file holds a transcoder, and its activation."""
    name = str(config.get("architecture") or "standard")
    stem = name.removesuffix("transcoder").removesuffix("_").removesuffix("skip").removesuffix("_")
    kind = stem or "standard"
    if "topk" in (config.get("activation_fn"), config.get("activation_fn_str")):
        kind = {"standard": "topk"}.get(kind, kind)
    if kind not in _KINDS:
        known = ", ".join((*_KINDS, "their transcoders"))
        raise ResultError(f"{path}: architecture {name} is not supported; known: {known}")
    return name.endswith("transcoder"), _KINDS[kind]


def _tensors(weights: Tensors, activation: str, folder: Path) -> Tensors:
    """Their tensors as ours; a scaling factor of nothing but ones is what older versions wrote."""
    factor = weights.get("scaling_factor")
    if factor is not None and bool((factor != 1).any()):
        raise ResultError(f"{folder}: features rescaled by scaling_factor are not supported")
    threshold = "topk_threshold" if "topk_threshold" in weights else "threshold"
    cut = {"threshold": threshold} if activation in ("jumprelu", "batchtopk") else {}
    perhaps, idle = {"skip": "W_skip"}, ("scaling_factor",)
    tensors = renamed(weights, {**SAME, **cut}, folder, perhaps=perhaps, idle=idle)
    return {n: t.T if n == "skip" else t for n, t in tensors.items()}


def _scale(config: Mapping[str, Any], folder: Path, *, transcoder: bool) -> float:
    """The factor on the input, where a file leaves one to be applied."""
    if config.get("normalize_activations") in (None, "none", False):
        return 1.0
    beside = folder / SCALER
    factor = read_settings(beside).get("scaling_factor") if beside.exists() else None
    factor = config.get("norm_scaling_factor", factor)
    if factor is None or transcoder:
        raise ResultError(
            f"{folder}: inputs are scaled to an average norm, and the factor is not in its files; "
            "fold it into the weights with SAELens and save again"
        )
    return float(factor)


def _folded(d: "Dictionary") -> Tensors:
    """The weights of the same function without a scale, in SAELens' shapes."""
    tensors = {
        "W_enc": d.W_enc * d.scale,
        "b_enc": d.b_enc,
        "W_dec": d.W_dec / d.scale,
        "b_dec": d.b_dec / d.scale,
        "threshold": d.threshold,
        "W_skip": None if d.skip is None else d.skip.T,
    }
    return {n: t.cpu().contiguous() for n, t in tensors.items() if t is not None}


def _config(d: "Dictionary") -> dict[str, Any]:
    told = {k: v for k, v in d.about.items() if k not in _USED}
    config: dict[str, Any] = {
        "architecture": _architecture(d),
        "d_in": d.d_in,
        "d_sae": d.d_dict,
        "dtype": str(d.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": d.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **told, "name": d.name, **_hooks(d)},
    }
    if d.is_transcoder:
        config["d_out"] = d.d_out
    if d.activation == "topk":
        config |= {"k": d.k, "rescale_acts_by_decoder_norm": False}
    return config


def _architecture(d: "Dictionary") -> str:
    kind = next(theirs for theirs, ours in _KINDS.items() if ours == d.activation)
    if not d.is_transcoder:
        return kind
    parts = (kind.removeprefix("standard"), "skip" if d.skip is not None else "", "transcoder")
    return "_".join(part for part in parts if part)


def _hooks(d: "Dictionary") -> dict[str, str]:
    """Names of the sites: those of the dictionary's own file where they still say the same."""
    out = {}
    for key, site in {"hook_name": d.site, "hook_name_out": d.out_site}.items():
        if site is not None:
            own = d.about.get(key)
            out[key] = own if own and site_of_hook(own) == site else hook_of_site(site)
    return out
