"""Tiny random decoders of every family that the engine must be exact on.

Three layers, four heads in two groups where the family groups them, sliding windows of 8 where it
has them, so that a few dozen tokens exercise everything.
"""

import warnings

import torch

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLP = {**SMALL, "intermediate_size": 48}
WINDOW = {"sliding_window": 8}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES = {
    "llama": ("Llama", {**MLP, "head_dim": 12}),
    "qwen2": ("Qwen2", {**MLP, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**MLP, "head_dim": 8}),
    "gemma2": ("Gemma2", {**MLP, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 20,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}),
    "gemma3": ("Gemma3", {**MLP, **WINDOW, "head_dim": 8, "sliding_window_pattern": 2}),
    "mistral": ("Mistral", {**MLP, **WINDOW}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 120,
                      "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoX", {**MLP, "rotary_pct": 0.5}),
    "phi3": ("Phi3", {**MLP, **WINDOW}),
    "olmo2": ("Olmo2", MLP),
    "mixtral": ("Mixtral", {**MLP, **MOE, **WINDOW}),
    "qwen3_moe": ("Qwen3Moe", {**MLP, "num_experts": 4, "num_experts_per_tok": 2,
                               "moe_intermediate_size": 16, "head_dim": 8}),
    "gpt_oss": ("GptOss", {**MLP, **MOE, **WINDOW, "head_dim": 8}),
    "granite": ("Granite", {**MLP, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
}  # fmt: skip


def tiny(family: str, *, seed: int = 0, scale: float = 12.0) -> torch.nn.Module:
    """A random model of the family, with weights large enough that heads differ."""
    import transformers

    name, settings = FAMILIES[family]
    config_class = getattr(transformers, f"{name}TextConfig", None)
    config_class = config_class or getattr(transformers, f"{name}Config")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_class(**settings)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
            model = getattr(transformers, name + head)(config)
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data.mul_(scale)
                else:
                    parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
