"""Reading dictionaries from a folder or the hub, in the layouts in which they are published.

read_dictionary("dictionaries/L15")
read_dictionary("hub:google/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_medium")
"""

from dataclasses import replace
from pathlib import Path

import torch

from interp.errors import ResultError, UnknownNameError
from interp.sites import Site
from probes.feature_drafts import Draft, Layout
from probes.feature_layouts import (
    read_dictionary_learning,
    read_gemma_scope,
    read_gemma_scope_2,
    read_sparsify,
)
from probes.feature_saelens import SCALER, SETTINGS, WEIGHTS, read_saelens, write_saelens
from probes.feature_sites import check_dictionary, hook_of_site, site_of_hook
from probes.features import Dictionary

__all__ = ["HUB", "LAYOUTS", "check_dictionary", "read_dictionary", "write_dictionary"]

HUB = "hub:"

LAYOUTS: dict[str, Layout] = {
    "saelens": Layout((SETTINGS, WEIGHTS), read_saelens, (SCALER,)),
    "gemma_scope": Layout(("params.npz",), read_gemma_scope),
    "gemma_scope_2": Layout(("params.safetensors",), read_gemma_scope_2, ("config.json",)),
    "sparsify": Layout(("cfg.json", "sae.safetensors"), read_sparsify),
    "dictionary_learning": Layout(("config.json", "ae.pt"), read_dictionary_learning),
}


def read_dictionary(
    where: str | Path, *, site: Site | None = None, layout: str | None = None
) -> Dictionary:
    """A dictionary from a folder, or `hub:org/name/folder` (`hub:org/name@revision/folder`).

    Args:
        site: where it reads, if its files do not say or say something else.
        layout: a row of `LAYOUTS`; found by the files that are there when None.

    Raises:
        ResultError: no folder, no known layout, a damaged file, a missing tensor, weights that are
            no numbers or do not fit, a setting that is not supported, an unreachable hub.
        UnknownNameError: no such layout.
    """
    folder = _fetched(str(where)) if str(where).startswith(HUB) else Path(where)
    if not folder.is_dir():
        what = "is a file; name its folder" if folder.exists() else "is not here; name a folder"
        raise ResultError(f"{where} {what} with a dictionary, or {HUB}org/name/folder")
    name = _found(folder) if layout is None else layout
    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)
    draft = _placed(LAYOUTS[name].read(folder), site, folder)
    return _finished(draft, folder, {"layout": name, "source": str(where)})


def write_dictionary(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary in the SAELens layout, whole or not at all; see `write_saelens`."""
    return write_saelens(dictionary, Path(folder))


def _found(folder: Path) -> str:
    """The layout whose files a folder holds."""
    for name, layout in LAYOUTS.items():
        if all((folder / file).exists() for file in layout.files):
            return name
    known = "; ".join(f"{name}: {' + '.join(row.files)}" for name, row in LAYOUTS.items())
    raise ResultError(f"{folder} holds no dictionary of a known layout ({known})")


def _placed(draft: Draft, site: Site | None, folder: Path) -> Draft:
    """The draft with the site that the caller names in place of its file's.

    A feed-forward part is the only thing that a transcoder of one layer stands for.
    """
    if site is not None:
        known = draft.hook_out if site_of_hook(draft.hook_out) else None
        behind = known or f"blocks.{site.layer}.mlp.hook_out"
        return replace(
            draft, hook=hook_of_site(site), hook_out=behind if draft.transcoder else None
        )
    if draft.transcoder and site_of_hook(draft.hook_out) is None:
        raise ResultError(f"{folder} holds a transcoder and does not say of what; name its site")
    return draft


def _finished(draft: Draft, folder: Path, about: dict[str, str]) -> Dictionary:
    """The checked dictionary of a draft."""
    for name, tensor in draft.tensors.items():
        if not torch.isfinite(tensor).all():
            raise ResultError(f"{folder}: {name} holds NaN or infinity; fetch the dictionary again")
    tensors = {n: t.to(draft.tensors["W_enc"].dtype) for n, t in draft.tensors.items()}
    activation = draft.activation
    if activation == "batchtopk":
        if (tensors["threshold"] < 0).any():
            raise ResultError(f"{folder}: the threshold was never set; train it to the end")
        activation, about = "jumprelu", {**about, "trained_as": activation}
    if activation == "jumprelu" and tensors["threshold"].numel() == 1:
        tensors["threshold"] = tensors["threshold"].reshape(1).expand(tensors["W_enc"].shape[1])
    hooks = {"hook_name": draft.hook, "hook_name_out": draft.hook_out}
    return Dictionary(
        name=str(draft.about.get("name") or folder.absolute().name),
        activation=activation,  # type: ignore[arg-type]
        **tensors,
        site=site_of_hook(draft.hook),
        out_site=site_of_hook(draft.hook_out) if draft.transcoder else None,
        k=draft.k,
        centred=draft.centred,
        scale=draft.scale,
        about={**draft.about, **about, **{n: h for n, h in hooks.items() if h is not None}},
    )


def _fetched(where: str) -> Path:
    """The folder of a hub reference, fetched once; only files that a layout may have."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    parts = where.removeprefix(HUB).strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise ResultError(f"{where} names no dictionary of the hub; write {HUB}org/name/folder")
    name, _, revision = parts[1].partition("@")
    inside = "/".join(parts[2:])
    files = {f for row in LAYOUTS.values() for f in (*row.files, *row.others)}
    wanted = [f"{inside}/{f}" if inside else f for f in sorted(files)]
    try:
        root = snapshot_download(
            f"{parts[0]}/{name}", revision=revision or None, allow_patterns=wanted
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ResultError(
            f"{where} cannot be fetched ({reason}); check the name and the connection, or copy the "
            "folder here and name it"
        ) from None
    return Path(root) / inside
