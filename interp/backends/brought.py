"""Which backend runs what somebody brought, and the check that it is what it says.

The default engine is the fastest and the most complete, so it also runs the plain model behind a
bridge or an nnsight wrapper; `backend=` asks for the library's own hooks instead. A model that the
engine cannot run (its attention does not go through transformers' shared dispatch) is run by the
library that it came in.
"""

import logging
from typing import TYPE_CHECKING, Any

from interp.backends.agreement import check_agrees
from interp.backends.hf import HFModel
from interp.backends.twins import shared_copy
from interp.backends.whole import WholeModel
from interp.checks import check_wrap
from interp.errors import ModelError, UnknownNameError
from interp.loading import brought_by

if TYPE_CHECKING:
    from interp.loading import Loaded

log = logging.getLogger(__name__)

BACKENDS = ("hf", "lens", "nnsight")


def under_instrument(
    parts: "Loaded", brought: Any, *, backend: str | None, check: bool, remote: Any
) -> HFModel:
    """The loaded parts under a backend.

    Args:
        brought: what the user gave: a name, a model, a bridge, an nnsight wrapper.
        backend: one of `BACKENDS`; None takes the default engine where it can serve.
        check: hold the wrapper that was brought, and the one that is returned, against the plain
            model.
        remote: for nnsight traces: True, or "local" for nnsight's simulation of a server.

    Raises:
        UnknownNameError: no such backend.
        ModelError: a wrapper that disagrees, or a model that the backend cannot run.
    """
    if backend is not None and backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    library = brought_by(brought)
    if remote and (library, backend) != ("nnsight", "nnsight"):
        raise ModelError(
            "remote= is for nnsight wrappers: interp.load(TransformersModel(...), "
            "backend='nnsight', remote=True)"
        )
    if remote and not hasattr(type(brought), "to_model_key"):
        raise ModelError(
            f"a {type(brought).__name__} has no name on a service; remote= takes a "
            "TransformersModel"
        )
    if library is not None and check and not remote:
        opened = _opened(parts, brought, library)
        check_agrees(opened, what=f"the {type(brought).__name__}", remedy=_remedy(brought, library))
    model = _chosen(parts, brought, library, backend, remote)
    if check and isinstance(model, WholeModel) and library != model.name:
        check_agrees(model, what=f"{type(parts.model).__name__} under {model.name}")
    if check:
        check_wrap(model)
    return model


def _remedy(brought: Any, library: str) -> str:
    if library == "nnsight":
        return "take its edits off (clear_edits), or load the transformers model itself"
    if getattr(brought, "compatibility_mode", False):
        return (
            "compatibility mode has rewritten its weights: load it before enable_compatibility_mode"
        )
    return "take its permanent hooks off (reset_hooks), or load the transformers model itself"


def _chosen(
    parts: "Loaded", brought: Any, library: str | None, backend: str | None, remote: Any
) -> HFModel:
    if backend not in (None, "hf"):
        return _library_model(parts, brought, library, str(backend), remote)
    try:
        return HFModel(parts.model, parts.tokenizer, source=parts.source)
    except ModelError as why:
        if library is None and not parts.model._can_set_attn_implementation():
            raise ModelError(
                f"{why}; or load it with backend='nnsight' or 'lens': whole forwards, slower"
            ) from None
        if library is None or backend == "hf":
            raise
        log.info("%s: run by %s, whole forwards", why, library)
        return _library_model(parts, brought, library, library, remote)


def _opened(parts: "Loaded", brought: Any, library: str) -> WholeModel:
    """The very object that was brought, under hooks or a trace of its library."""

    def tap(model: WholeModel) -> Any:
        if library == "lens":
            from interp.backends.lens import LensTap

            return LensTap(brought, model.anatomy)
        from interp.backends.nns import NNsightTap

        return NNsightTap(brought, model.hf, model.anatomy)

    return WholeModel(tap, parts.model, parts.tokenizer, source=parts.source)


def _library_model(
    parts: "Loaded", brought: Any, library: str | None, backend: str, remote: Any
) -> WholeModel:
    """The model run by a library: the user's bridge or remote wrapper, else one made on a copy."""
    if library == backend and (backend == "lens" or remote):
        model = _opened(parts, brought, backend)
        if remote:
            model.tap.how["remote"] = remote  # type: ignore[attr-defined]
        return model
    from interp.backends import lens, nns

    def tap(model: WholeModel) -> Any:
        if backend == "lens":
            return lens.LensTap(lens.boot(model.hf, model.spec), model.anatomy)
        return nns.NNsightTap(nns.wrap(shared_copy(model.hf)), model.hf, model.anatomy)

    return WholeModel(tap, parts.model, parts.tokenizer, source=parts.source)
