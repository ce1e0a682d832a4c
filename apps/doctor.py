"""Is this model measured rightly, and is the installation sound? One line a question."""

import json
from importlib import metadata
from typing import TYPE_CHECKING, Any

from apps.console import say
from interp import checks
from interp.checks import Check

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

PACKAGES = ("interp", "probes", "circuits", "apps")
MEASURES = (
    checks.check_logits,
    checks.check_rows,
    checks.check_row_sums,
    checks.check_windows,
    checks.check_groups,
)
LENGTHS = (1024, 4096, 16384, 65536)


def examine(model: "HFModel", *, as_json: bool) -> bool:
    """Print every check; whether all passed."""
    found = [*(check(model) for check in MEASURES), *_facts(model), *_owners()]
    if as_json:
        say(json.dumps([vars(c) for c in found]))
    else:
        for check in found:
            say(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    return all(c.passed for c in found)


def _facts(model: "HFModel") -> list[Check]:
    spec, tokenizer = model.spec, model.tokenizer
    facts = {
        "source": model.source.detail,
        "layers": f"{spec.n_layers}",
        "heads": f"{spec.n_heads} a layer, on {spec.n_kv_heads} key-value heads",
        "attention layers": _attention(model),
        "soft-cap": "none" if spec.softcap is None else f"{spec.softcap}",
        "sinks": "learned, in the softmax denominator" if spec.has_sinks else "none learned",
        "contributions": _contributions(model),
        "context": f"{spec.context_length} tokens",
        "BOS": _bos(tokenizer),
        "chat template": "yes"
        if getattr(tokenizer, "chat_template", None)
        else "none: plain style",
        "special tokens": ", ".join(map(str, tokenizer.all_special_tokens[:6])) or "none",
        "keys and values": ", ".join(
            f"{n} tokens {kv_bytes(spec, n, model.dtype.itemsize) / 2**20:.0f} MiB"
            for n in LENGTHS
            if spec.context_length is None or n <= spec.context_length
        ),
    }
    return [Check(name, True, str(detail)) for name, detail in facts.items()]


def kv_bytes(spec: Any, n_tokens: int, itemsize: int) -> int:
    """Memory of the keys and values of a context, all layers, untruncated."""
    return 2 * len(spec.attention_layers) * spec.n_kv_heads * spec.d_head * n_tokens * itemsize


def _attention(model: "HFModel") -> str:
    absent = model.spec.n_layers - len(model.spec.attention_layers)
    return "all" if not absent else f"{absent} layers have no attention rows: not applicable"


def _contributions(model: "HFModel") -> str:
    return "can be read" if model.anatomy.can_write else "not applicable: no write scores"


def _bos(tokenizer: Any) -> str:
    if tokenizer.bos_token_id is None:
        return "none"
    added = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return f"{tokenizer.bos_token!r}, {'added by itself' if added else 'not added by itself'}"


def _owners() -> list[Check]:
    """Our packages have generic names: another distribution can overwrite them unnoticed."""
    owners = metadata.packages_distributions()
    others = {
        name: sorted({o for o in owners.get(name, []) if o and o.lower() != "mnemoscope"})
        for name in PACKAGES
    }
    clashes = [f"{name} is also owned by {', '.join(o)}" for name, o in others.items() if o]
    if clashes:
        remedy = "; install mnemoscope in an environment of its own"
        return [Check("package names", False, "; ".join(clashes) + remedy)]
    return [Check("package names", True, "no other distribution owns " + ", ".join(PACKAGES))]
