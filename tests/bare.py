"""The bare model under an attention function of the tests' own: an oracle for edits.

Whole matrices, keys repeated for every query head, no cache, no packing. `run` takes changes by
layer, functions `change(stage, *tensors)` that write into what they are given:

    inputs   q, k, v       [head, pos, d_head], keys and values one for each query head
    weights  weights, visible   [head, query, key], [query, key]
    z        z             [head, pos, d_head]
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "test_oracle"
CHANGES: dict = {}


def attention(module, query, key, value, attention_mask, scaling, softcap=None, s_aux=None, **_):
    n = query.shape[1] // key.shape[1]
    q, k, v = query[0].clone(), key[0].repeat_interleave(n, 0), value[0].repeat_interleave(n, 0)
    change = CHANGES.get(module.layer_idx, lambda *parts: None)
    change("inputs", q, k, v)
    scores = q @ k.transpose(1, 2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask[0, 0]
    if s_aux is not None:
        scores = torch.cat([scores, s_aux[:, None, None].expand(-1, q.shape[1], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]]
    change("weights", weights, attention_mask[0, 0] >= 0)
    z = weights @ v
    change("z", z)
    return z.transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


def run(hf, tokens, changes=None):
    """Logits `[pos, d_vocab]` of one whole forward."""
    CHANGES.clear()
    CHANGES.update(changes or {})
    before = hf.config._attn_implementation
    hf.set_attn_implementation(NAME)
    try:
        with torch.no_grad():
            return hf(torch.as_tensor(tokens)[None], use_cache=False).logits[0]
    finally:
        hf.set_attn_implementation(before)
        CHANGES.clear()


def outputs(hf, tokens, n_layers):
    """Head outputs by layer, `[head, pos, d_head]`."""
    seen = {}

    def keep(layer):
        def change(stage, *parts):
            if stage == "z":
                seen[layer] = parts[0].clone()

        return change

    run(hf, tokens, {layer: keep(layer) for layer in range(n_layers)})
    return seen
