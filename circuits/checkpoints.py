"""A series of models, such as checkpoints of a training run: named, opened in turn, and freed.

Checkpoints are compared position by position, so all of them must cut a text alike.
"""

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interp.errors import ModelError, PromptError

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Models = Any
"""A reference of `interp.load` (a hub name may end in @revision), a model already loaded, several
of these, or a mapping from names to them."""
Found = TypeVar("Found")


def named_models(models: Models) -> dict[str, Any]:
    """Each model by the name that results give it: the mapping's, the folder's, name@revision.

    Raises:
        PromptError: no model, or two of one name.
    """
    if isinstance(models, Mapping):
        found = {str(name): ref for name, ref in models.items()}
    else:
        single = isinstance(models, str | Path) or not isinstance(models, Iterable)
        refs = [models] if single else list(models)
        names = [_name(ref) for ref in refs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise PromptError(f"two models are called {twice[0]!r}; give a mapping from names")
        found = dict(zip(names, refs, strict=True))
    if not found:
        raise PromptError("no model was given; name one or more, in the order of their training")
    return found


def visit(
    ref: Any, work: Callable[["HFModel"], Found], options: Mapping[str, Any] | None = None
) -> Found:
    """Open a model, do some work with it, and give its memory back unless it came loaded.

    Args:
        options: of `interp.load`: device, dtype, ...

    Raises:
        ModelError, UnknownNameError: see `interp.load`.
    """
    if hasattr(ref, "extend"):
        return work(ref)
    import interp

    name, revision = _parts(ref)
    told = dict(options or {}) | ({"revision": revision} if revision else {})
    model = interp.load(name, **told)
    on_gpu = model.device.type == "cuda"
    try:
        return work(model)
    finally:
        del model
        gc.collect()
        if on_gpu:
            import torch

            torch.cuda.empty_cache()


def same_tokenizer(model: "HFModel", expected: str, name: str) -> None:
    """Refuse a model whose tokenizer is not the one of the models before it.

    Raises:
        ModelError: another tokenizer.
    """
    if model.source.tokenizer_hash != expected:
        raise ModelError(
            f"{name} has another tokenizer than the models before it, so its positions are others; "
            "give checkpoints of one training run"
        )


def file_name(name: str) -> str:
    """A model's name as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_.@" else "-" for c in name)


def _name(ref: Any) -> str:
    if hasattr(ref, "extend"):
        return str(ref.source.name)
    name, revision = _parts(ref)
    if Path(name).expanduser().exists():
        return Path(name).expanduser().resolve().name
    return f"{name}@{revision}" if revision else str(name)


def _parts(ref: Any) -> tuple[Any, str | None]:
    """A reference and its revision; a path may well hold an @."""
    if not isinstance(ref, str) or "@" not in ref or Path(ref).expanduser().exists():
        return ref, None
    name, _, revision = ref.rpartition("@")
    return name, revision
