"""Short names for weights and tokenizers that stay the same wherever the files came from.

A result is worth comparing with another only if both saw the same weights. File hashes do not say
that: shards, formats and precision on disk differ for one model. These are taken from the loaded
objects.
"""

import hashlib
import json
from typing import Any

SAMPLES = 1024  # values read of each tensor


def weight_hash(model: Any) -> str | None:
    """SHA-256 over the name and shape of every weight and up to 1,024 of its values.

    Tensors of up to 1,024 values are read whole; of larger ones, values at fixed places spread
    over the whole tensor. Values are taken as 64-bit floats and the storage dtype is left out, so
    a checkpoint hashes alike in bf16 and widened to fp32, and unlike after rounding. A change that
    misses every sampled place is not seen. None when some weights are not in memory (offloaded).
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta":
            return None
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            flat = tensor.detach().reshape(-1)
            places = _places(flat.numel()).to(flat.device)
            digest.update(flat[places].to("cpu", torch.float64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _places(n: int) -> Any:
    """Fixed indices into `n` values: all, or the ends and a walk by a large odd step."""
    import torch

    if n <= SAMPLES:
        return torch.arange(n)
    walk = torch.arange(SAMPLES, dtype=torch.int64) * 2_654_435_761 % n
    walk[-1] = n - 1
    return walk


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's rules, vocabulary, chat template and special tokens.

    Padding and truncation are left out: calling a tokenizer changes them, not what it means.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python: its vocabulary and its class stand for it
        rules: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        # The text starts with version, truncation and padding; cutting there saves parsing and
        # writing megabytes (quotes inside a value are escaped, so the first match is the key).
        head, key, rest = backend.to_str().partition('"added_tokens":')
        rules = key + rest or head
    told = {
        "rules": rules,
        "chat_template": getattr(tokenizer, "chat_template", None),
        "special_tokens": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
