"""The instrument: load a model, name places in it, prefill, extend, read and edit.

Knows no experiment. `load` is the way in; importing this package imports neither torch nor a model
library.
"""

from typing import TYPE_CHECKING, Any

from interp.errors import (
    MnemoscopeError,
    ModelError,
    PromptError,
    ResultError,
    SiteError,
    UnknownNameError,
)
from interp.hook_names import hook_name, site_at
from interp.sites import Edit, Head, Site

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

__all__ = [
    "Edit",
    "Head",
    "MnemoscopeError",
    "ModelError",
    "PromptError",
    "ResultError",
    "Site",
    "SiteError",
    "UnknownNameError",
    "hook_name",
    "load",
    "site_at",
]


def load(
    model: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: Any = "auto",
    device: str | None = None,
    device_map: Any = None,
    check: bool = True,
    backend: str | None = None,
    remote: bool | str = False,
) -> "HFModel":
    """Load a decoder and put it under the instrument.

    Args:
        model: a local folder, a `.gguf` file, a bundled name (`mnemoscope models list`), a hub
            name (`org/name`), or a live `PreTrainedModel` (then `tokenizer` is needed),
            TransformerLens `TransformerBridge` or nnsight `TransformersModel` / `NNsight`. A live
            object is left as it was between calls, and a bridge or wrapper is held against the
            plain model of its own weights.
        revision: branch, tag or commit, for hub names.
        dtype: `auto` is float32 on a CPU and the checkpoint's own precision on a GPU.
        device: `cpu`, `cuda`, `cuda:1`, ...; a GPU when there is one, if None.
        device_map: passed to transformers, for models over several GPUs.
        check: compare a short forward with the bare model; a mismatch raises.
        backend: `hf`, the fast engine, also for the plain model behind a bridge or wrapper; `lens`
            or `nnsight`, whole forwards through that library's hooks; None is `hf` where the engine
            can run the model, else the library that it came in.
        remote: run nnsight traces on its service; True, or "local" for its simulation.

    Raises:
        UnknownNameError: no such name or backend (nearest ones suggested).
        ModelError: the model cannot be loaded, is no decoder, or fails the check.
    """
    from interp.backends.brought import under_instrument
    from interp.loading import load_parts

    parts = load_parts(
        model,
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
    )
    return under_instrument(parts, model, backend=backend, check=check, remote=remote)
