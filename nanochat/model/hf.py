"""Our weights under the names of transformers' `NanoChatForCausalLM`. Knows no transformers."""

from torch import Tensor

from nanochat.model.config import GPTConfig

NAMES = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def to_hf_state(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Rename the weights of a GPT's state_dict and cut the padding of both tables."""
    renamed = {
        "model.embed_tokens.weight": state["embedding.weight"][: config.vocab_size],
        "lm_head.weight": state["head.weight"][: config.vocab_size],
    }
    for layer in range(config.n_layer):
        for ours, theirs in NAMES.items():
            renamed[f"model.layers.{layer}.{theirs}.weight"] = state[f"blocks.{layer}.{ours}.weight"]
    return renamed


def build_hf_config(config: GPTConfig, bos_id: int, eos_id: int) -> dict:
    """Values of transformers' NanoChatConfig for this shape."""
    return {
        "model_type": "nanochat",
        "architectures": ["NanoChatForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.context,
        "final_logit_softcapping": config.softcap,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,  # torch gives the row of a padding id no gradient, and there is none to spare
    }
