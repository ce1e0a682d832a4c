"""A dictionary as its files tell it, before it is checked, and careful reading of such files.

A file may be damaged, of another kind, or lack a tensor: each gives one line, with its path.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from interp.errors import ResultError

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"
SAME = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
"""Our names of the weights, where a file has the same."""


@dataclass(frozen=True, eq=False)
class Draft:
    """Tensors under our names, and the places under those of `feature_sites.HOOKS`.

    `tensors` holds W_enc, b_enc, W_dec, b_dec, and threshold (one number stands for all features)
    and skip where there are any.
    """

    activation: str
    tensors: Tensors
    hook: str | None
    hook_out: str | None = None
    transcoder: bool = False
    k: int | None = None
    centred: bool = False
    scale: float = 1.0
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The files that tell a layout from the others, further files it may have, and its reader."""

    files: tuple[str, ...]
    read: Callable[[Path], Draft]
    others: tuple[str, ...] = ()


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ResultError: as do all functions here, for files that are damaged or not as expected.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if not isinstance(value, dict):
        raise ResultError(f"{path} holds no settings; fetch the dictionary again")
    return value


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a safetensors file, in main memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None


def check_safetensors(path: Path) -> None:
    """Refuse a file that is cut, or no safetensors file; its tensors are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None


def read_pickled(path: Path) -> Tensors:
    """Tensors of a `.pt` file; nothing but tensors and plain values is unpickled."""
    import pickle

    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise damaged(path, error) from None
    if not isinstance(value, dict) or not all(isinstance(v, torch.Tensor) for v in value.values()):
        raise ResultError(f"{path} holds no table of tensors; save the model's state_dict")
    return value


def damaged(path: Path, error: Exception) -> ResultError:
    """One line for a file that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ResultError(f"{path} cannot be read ({reason}); fetch the dictionary again")


def renamed(
    weights: "Mapping[str, Tensor]",
    needed: Mapping[str, str],
    folder: Path,
    *,
    perhaps: Mapping[str, str] | None = None,
    idle: Collection[str] = (),
) -> Tensors:
    """A file's tensors under our names; none may be missing, and none may be left over.

    Args:
        needed, perhaps: their name by ours; those of `perhaps` may be missing.
        idle: names without a part in encoding and decoding.
    """
    names = {**needed, **{k: v for k, v in (perhaps or {}).items() if v in weights}}
    missing = [theirs for theirs in names.values() if theirs not in weights]
    if missing:
        raise ResultError(f"{folder} lacks {', '.join(missing)}; it holds {_list(weights)}")
    rest = [n for n in weights if n not in names.values() and n not in idle]
    if rest:
        raise ResultError(
            f"{folder} also holds {_list(rest)}, whose part is not known here; it is another kind "
            "of dictionary than its settings say"
        )
    return {ours: weights[theirs] for ours, theirs in names.items()}


def check_setting(config: Mapping[str, Any], key: str, good: Collection[Any], path: Path) -> None:
    """Refuse a setting with a value that is not understood; one that is absent is good."""
    if config.get(key) is not None and config[key] not in good:
        known = ", ".join(map(str, good)) or "none"
        raise ResultError(f"{path}: {key} = {config[key]} is not supported; known: {known}")


def normed(tensors: Tensors) -> Tensors:
    """Features times the norms of their decoder rows, and decoder rows of norm one."""
    norms = tensors["W_dec"].norm(dim=1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms.clamp(min=1e-30)[:, None],
    }


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
