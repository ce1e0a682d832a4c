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
    "load",
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
) -> "HFModel":
    """Load a decoder and put it under the instrument.

    Args:
        model: a local folder, a `.gguf` file, a bundled name (`mnemoscope models list`), a hub
            name (`org/name`), or a live `PreTrainedModel` (then `tokenizer` is needed; the object
            is left as it was between calls).
        revision: branch, tag or commit, for hub names.
        dtype: `auto` is float32 on a CPU and the checkpoint's own precision on a GPU.
        device: `cpu`, `cuda`, `cuda:1`, ...; a GPU when there is one, if None.
        device_map: passed to transformers, for models over several GPUs.
        check: compare a short forward with the bare model; a mismatch raises.

    Raises:
        UnknownNameError: no such name (nearest ones suggested).
        ModelError: the model cannot be loaded, is no decoder, or fails the check.
    """
    from interp.backends.hf import HFModel
    from interp.checks import check_wrap
    from interp.loading import load_parts

    parts = load_parts(
        model,
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
    )
    wrapped = HFModel(parts.model, parts.tokenizer, source=parts.source)
    if check:
        check_wrap(wrapped)
    return wrapped
