"""A model and its tokenizer from wherever they are, with a record of which source was used.

A reference is a live transformers model (or a TransformerBridge or nnsight wrapper around one), a
local folder, a GGUF file, the name of a bundled model or a hub name. What a reference means is
decided once, here, and never changed because a source failed: an unreachable hub is an error that
names the alternatives, not a reason to load another model.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.bundled import BUNDLED
from interp.errors import ModelError
from interp.fingerprint import tokenizer_hash, weight_hash
from interp.gguf import quiet, unfilled
from interp.reference import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Kind,
    Place,
    hub_answers,
    hub_commit,
    refused,
    resolve,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


@dataclass(frozen=True)
class Source:
    """Where a model came from. `detail` is a sentence; `revision` the hub commit, if known.

    `quantisation` says how the weights were rounded (None: not at all, as far as the files tell).
    The hashes are those of `interp.fingerprint`. `reference` is what loads it again: a path, a
    bundled or a hub name; empty for a live object.
    """

    kind: Kind
    name: str
    detail: str
    revision: str | None
    quantisation: str | None
    weight_hash: str | None
    tokenizer_hash: str
    reference: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode (live ones are left as they are), its tokenizer, its source."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    source: Source


def load_parts(
    ref: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: "str | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    device_map: Any = None,
) -> Loaded:
    """Load a decoder-only language model and its tokenizer.

    `ref`: a live `PreTrainedModel` (needs `tokenizer=`), a bridge or an nnsight wrapper of one (the
    model is then the plain one behind it, over the same weights), a folder, a `.gguf` file, a
    bundled name (`smollm2-135m`, also `bundled:...`; fetched if absent), or a hub name (`org/name`,
    also `hub:...`; `revision` applies to these). `tokenizer` may be a tokenizer or a folder or hub
    name to take it from. `dtype="auto"` is float32 on a CPU and the checkpoint's own on a GPU.
    `device=None` is the GPU if there is one. `device_map` goes to transformers unchanged.

    Raises ModelError, in one line, when the source cannot be had or is no decoder-only model, and
    UnknownNameError for a name that is none of these.
    """
    if not isinstance(ref, str | Path):
        return _live(ref, tokenizer, revision, dtype, device, device_map)
    options = _placement(dtype, device, device_map)
    place = resolve(ref)
    if revision is not None and place.kind != "hub":
        raise ModelError(f"revision={revision!r} applies to hub names; {ref} is a {place.kind}")
    with quiet():
        place = _asked(replace(place, revision=revision))
        config = _config(place)
        if place.kind == "hub":  # the other files come from the commit that the config came from
            place = replace(place, revision=hub_commit(place) or revision)
        tokenizer = _tokenizer(place, tokenizer)
        model = _model(place, config, *options)
    return _loaded(place, model, tokenizer)


def _asked(place: Place) -> Place:
    return replace(place, cached_only=place.kind == "hub" and not hub_answers())


def _loaded(place: Place, model: Any, tokenizer: Any) -> Loaded:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        log.warning("the tokenizer has %d tokens, %s embeds %d", len(tokenizer), place.name, rows)
    at = f" at commit {place.revision}" if place.revision else ""
    source = Source(
        kind=place.kind,
        name=place.name,
        detail=place.detail + at,
        revision=place.revision,
        quantisation=place.quantisation or _quantisation(model.config),
        weight_hash=weight_hash(model),
        tokenizer_hash=tokenizer_hash(tokenizer),
        reference={"live": "", "bundled": place.name}.get(place.kind, place.location),
    )
    log.info("%s: %s", source.name, source.detail)
    return Loaded(model, tokenizer, source)


def _quantisation(config: Any) -> str | None:
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    told = told if isinstance(told, dict) else told.to_dict()
    bits = told.get("bits") or (
        4 if told.get("load_in_4bit") else 8 if told.get("load_in_8bit") else None
    )
    return f"{told.get('quant_method', 'quantised')}" + (f", {bits}-bit" if bits else "")


def _config(place: Place) -> Any:
    from transformers import AutoConfig

    if place.kind != "hub" and not (Path(place.location) / "config.json").is_file():
        raise ModelError(f"{place.detail} has no config.json{_instead(Path(place.location))}")
    try:
        config = AutoConfig.from_pretrained(place.location, **place.options)
    except (OSError, ValueError, KeyError) as error:
        raise refused(place, error, CONFIG) from error
    need_decoder(config, place.name)
    return config


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return ": it is an adapter; merge it into its base model and save that"
    if found := sorted(folder.glob("*.gguf")):
        return f"; give the GGUF file itself: {found[0]}"
    known = f"; for the bundled model: bundled:{folder.name}" if folder.name in BUNDLED else ""
    return f", so it is no model folder{known}"


def need_decoder(config: Any, name: str, *, live: bool = False) -> None:
    """Raise ModelError unless `config` is that of a decoder-only language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False):
        got = "an encoder-decoder"
    elif masked:
        got = "an encoder-only model"
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING and not live:
        got = "a model without a causal language-model class"
    else:
        return
    raise ModelError(f"{name}: decoder-only expected, got {got} ({config.model_type})")


def _model(place: Place, config: Any, dtype: Any, device: Any, device_map: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.location,
            config=config,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            **place.options,
        )
        model, info = loaded
        model = model if device is None else model.to(device)
    except Exception as error:  # safetensors and pickle raise kinds of their own
        raise refused(place, error, WEIGHTS) from error
    if missing := unfilled(model, info):
        raise ModelError(
            f"{place.detail} leaves {len(missing)} weights of {type(model).__name__} unfilled "
            f"({missing[0]} first): the checkpoint is of another class, or incomplete"
        )
    return model.eval()


def _tokenizer(place: Place, given: Any) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(given, PreTrainedTokenizerBase):
        return given
    if given is not None:
        if not isinstance(given, str | Path):
            raise ModelError(f"tokenizer= takes a tokenizer or a name, got {type(given).__name__}")
        place = _asked(resolve(given))
    if place.kind != "hub" and not any(
        (Path(place.location) / name).is_file() for name in TOKENIZER_FILES
    ):
        raise ModelError(
            f"{place.detail} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}); "
            "save one there with save_pretrained, or pass tokenizer="
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.location, **place.options)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise refused(place, error, TOKENIZER) from error
    if not len(tokenizer):
        raise ModelError(f"{place.detail} has an empty tokenizer; pass tokenizer=")
    return tokenizer


def brought_by(ref: Any) -> str | None:
    """Which library's object this is, by where its class lives: `lens`, `nnsight` or None.

    Neither library is imported for that.
    """
    homes = {base.__module__.split(".")[0] for base in type(ref).__mro__}
    if "transformer_lens" in homes:
        return "lens"
    return "nnsight" if "nnsight" in homes else None


def _live(
    given: Any, tokenizer: Any, revision: Any, dtype: Any, device: Any, device_map: Any
) -> Loaded:
    from transformers import PreTrainedModel

    kind = type(given).__name__
    if (revision, dtype, device, device_map) != (None, "auto", None, None):
        raise ModelError(
            f"revision, dtype, device and device_map are for loading; the live {kind} stays as it "
            "is: move or convert it before"
        )
    model = _behind(given)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            "a name, a path, a transformers model, a TransformerBridge or an nnsight wrapper "
            f"expected, got {kind}"
        )
    if tokenizer is None and model is not given:
        tokenizer = getattr(given, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(f"a live {kind} needs tokenizer=, its transformers tokenizer")
    need_decoder(model.config, kind, live=True)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{kind} has no language-model head: pass the causal-LM class")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    over = "" if model is given else f" around a {type(model).__name__}"
    place = Place("live", name, name, f"live {kind} of the caller{over}")
    with quiet():
        return _loaded(place, model, _tokenizer(place, tokenizer))


def _behind(given: Any) -> Any:
    """The plain model of a wrapper, over the same weights; anything else as it is."""
    library = brought_by(given)
    if library == "lens":
        from interp.backends.twins import plain_model

        return plain_model(given)
    if library == "nnsight":
        from interp.backends.nns import unwrapped

        return unwrapped(given)
    return given


def _placement(dtype: Any, device: Any, device_map: Any) -> tuple[Any, Any, Any]:
    """dtype, device and device_map with the automatic ones settled."""
    import torch

    if device is not None and device_map is not None:
        raise ModelError("give device or device_map, not both")
    try:
        if device_map is None:
            device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; cpu, cuda and cuda:0 are examples") from error
    if device is not None and device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device} asked for, but torch sees no CUDA GPU; use device='cpu'")
    if isinstance(dtype, torch.dtype):
        return dtype, device, device_map
    if dtype == "auto":
        cpu = device.type == "cpu" if device is not None else not torch.cuda.is_available()
        return torch.float32 if cpu else "auto", device, device_map
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"unknown dtype {dtype!r}; auto, float32, bfloat16 or float16 expected")
    return found, device, device_map
