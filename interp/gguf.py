"""GGUF files made into safetensors folders, once, in the cache.

transformers reads GGUF itself, for every architecture that it knows, but needs several seconds to
minutes each time. So a file is dequantised to fp32 once and kept as an ordinary folder that loads
in about a second, offline. Differences from transformers' own reading: the tokenizer's splitting
rules are mended from the file's `tokenizer.ggml.pre` field, and a file that leaves any weight of
the model unfilled is refused.
"""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ModelError
from interp.model_cache import build_once, cache_dir, file_sha256, need_room

log = logging.getLogger(__name__)

CONVERSION = "dequantised to fp32"

# `tokenizer.ggml.pre` -> what transformers leaves out of the tokenizer that it rebuilds.
SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
NORMALISE_NFC = frozenset({"qwen2"})
UNCHANGED = frozenset({"gpt-2", "llama-bpe", "llama3", "llama-v3", "tekken", "gpt-4o"})


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF header says: names, the tokenizer's splitting rule, tensor types, fp32 bytes."""

    architecture: str
    general_name: str | None
    licence: str | None
    pre_tokenizer: str | None
    tensor_types: dict[str, int]
    fp32_bytes: int
    tied_embeddings: bool


def convert(gguf: Path, target: Path) -> dict[str, Any]:
    """Write `gguf` as an fp32 safetensors model and tokenizer into the folder `target`.

    Returns facts for the record (architecture, tensor types, tied embeddings). Not atomic: give it
    a scratch folder, or use `converted`. Raises ModelError when the file is not GGUF, is truncated
    or is one part of several, when transformers does not know its architecture, or when the disk
    is too small.
    """
    facts = read_facts(gguf)
    need_room(target, facts.fp32_bytes)
    target.mkdir(parents=True, exist_ok=True)
    with _reading(gguf, facts), quiet(), redirect_stderr(io.StringIO()):  # tqdm, unasked
        tokenizer = _read_tokenizer(gguf, facts)
        model = _read_model(gguf, facts)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return {
        "architecture": facts.architecture,
        "general_name": facts.general_name,
        "licence": facts.licence,
        "quantisation": describe_types(facts.tensor_types),
        "conversion": CONVERSION,
        "tied_embeddings": bool(model.config.tie_word_embeddings),
        "parameters": model.num_parameters(),
    }


def converted(gguf: Path) -> Path:
    """The cached folder made from a user's GGUF file; made now if absent or out of date.

    One folder per path, current while the file's size and modification time stay as recorded: a
    check that costs nothing for a file of any size, where hashing 40 GB on each load would not. A
    file that moved is converted again; the record also keeps the SHA-256 of the content.
    """
    gguf = gguf.expanduser().resolve()
    try:
        stat = gguf.stat()
    except OSError as error:
        raise ModelError(f"cannot read the GGUF file {gguf}: {error.strerror}") from error
    stamp = {"path": str(gguf), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    key = hashlib.sha256(str(gguf).encode()).hexdigest()[:12]

    def build(folder: Path) -> dict[str, Any]:
        log.info("converting %s to an fp32 folder in the cache (once)", gguf)
        facts = convert(gguf, folder)
        return facts | {"name": gguf.name, "source": stamp, "sha256": file_sha256(gguf)}

    return build_once(
        cache_dir() / f"gguf-{gguf.stem}-{key}", build, lambda record: record.get("source") == stamp
    )


def read_facts(gguf: Path) -> GgufFacts:
    """The header of a GGUF file, checked: all tensor data present and not one part of several."""
    from gguf import GGUFReader

    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read the GGUF file {gguf}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(f"{gguf} is not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    try:
        reader = GGUFReader(gguf)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except Exception as error:  # numpy and struct errors of every kind
        raise ModelError(f"{gguf} cannot be read as GGUF, truncated or damaged? {error}") from error
    if not end:
        raise ModelError(f"{gguf} holds no tensors: a vocabulary or a header only, not a model")
    if end > (size := gguf.stat().st_size):
        raise ModelError(f"{gguf} is truncated: {size:,} bytes, {end:,} expected; copy it again")
    return _facts(reader, gguf)


def _facts(reader: Any, gguf: Path) -> GgufFacts:
    def text(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    if (parts := text("split.count") or 1) > 1:
        raise ModelError(f"{gguf} is one of {parts} parts; merge them into one GGUF file first")
    if (architecture := text("general.architecture")) is None:
        raise ModelError(f"{gguf} names no architecture (general.architecture): not a model")
    return GgufFacts(
        architecture=architecture,
        general_name=text("general.name"),
        licence=text("general.license"),
        pre_tokenizer=text("tokenizer.ggml.pre"),
        tensor_types=dict(Counter(t.tensor_type.name for t in reader.tensors).most_common()),
        fp32_bytes=4 * sum(int(t.n_elements) for t in reader.tensors),
        tied_embeddings=all(t.name != "output.weight" for t in reader.tensors),
    )


def describe_types(tensor_types: dict[str, int]) -> str:
    """The quantised tensor types, most frequent first: `Q4_1, Q8_0` (plain floats come last)."""
    plain = ("F16", "BF16", "F32", "F64")
    return ", ".join(sorted(tensor_types, key=lambda name: (name in plain, -tensor_types[name])))


@contextmanager
def _reading(gguf: Path, facts: GgufFacts) -> Iterator[None]:
    """Make whatever transformers raises on a file that it cannot read one ModelError."""
    try:
        yield
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers cannot read {gguf} (architecture {facts.architecture!r}): {first}"
        ) from error


def _read_model(gguf: Path, facts: GgufFacts) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        **_unpacked(),
    )
    model, info = loaded
    if missing := unfilled(model, info):
        raise ModelError(
            f"{gguf} leaves {len(missing)} weights of {facts.architecture!r} unfilled, "
            f"{missing[0]} first; convert the original checkpoint instead"
        )
    # What from_pretrained leaves behind says "still quantised", and would make saving refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def unfilled(model: Any, info: dict[str, Any]) -> list[str]:
    """Names of weights that no file gave a value (so they are random), tied ones left out."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return sorted(set(info["missing_keys"]) - tied)


def _unpacked() -> dict[str, Any]:
    """Newer transformers can keep GGUF blocks packed (on a GPU): ask for plain weights."""
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # older ones always unpack
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _read_tokenizer(gguf: Path, facts: GgufFacts) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    mend_tokenizer(tokenizer.backend_tokenizer, facts.pre_tokenizer)
    return tokenizer


def mend_tokenizer(backend: Any, pre: str | None) -> None:
    """Give a `tokenizers.Tokenizer` the splitting rule that the GGUF's `pre` field names."""
    from tokenizers import normalizers, pre_tokenizers

    if pre in SPLIT_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre in NORMALISE_NFC and backend.normalizer is None:
        backend.normalizer = normalizers.NFC()
    elif pre not in NORMALISE_NFC | UNCHANGED | {None}:
        log.warning(
            "GGUF tokenizer rule %r is unverified: compare token ids with the original", pre
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No transformers or hub chatter and bars inside; the settings are put back afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from huggingface_hub.utils import logging as hub_chatter
    from transformers.utils import logging as chatter

    level, hub_level = chatter.get_verbosity(), hub_chatter.get_verbosity()
    bars, hub_bars = chatter.is_progress_bar_enabled(), not are_progress_bars_disabled()
    chatter.set_verbosity_error()
    hub_chatter.set_verbosity_error()
    if hide := bars and hub_bars:  # the switch turns both; if either is off already, leave them
        chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        hub_chatter.set_verbosity(hub_level)
        if hide:
            chatter.enable_progress_bar()
