"""Tables of tiny random models: 42 causal architectures and 20 with a classification head, for the matrices of tests.

A table gives the settings that make a model tiny; each architecture keeps what is its own (experts, recurrent states,
windows, positions). `QUICK` and `QUICK_HEADS` are those that `make test` runs, 12 of the causal ones.
"""

import pytest
import torch
from helpers import bert_parts, bpe, save
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
HEADED = {**LLAMA, "head_dim": 16}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
BERT = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 64}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

SPARE = 1  # embeddings beyond the tokenizer's: Qwen2's class adds an end of text of its own when it is loaded

CAUSAL = {  # model type -> settings
    "llama": LLAMA,
    "gpt2": GPT,
    "mistral": {**HEADED, **WINDOW},
    "mixtral": {**HEADED, **LOCAL},
    "qwen2": LLAMA,
    "qwen2_moe": {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": HEADED,
    "qwen3_moe": {**HEADED, **EXPERTS},
    "gemma": HEADED,
    "gemma2": {**HEADED, **WINDOW},
    "gemma3_text": {**HEADED, **WINDOW},
    "phi": LLAMA,
    "phi3": {**LLAMA, "pad_token_id": 1},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 512,
        "window_size": 64,
    },
    "gpt_neox": BERT,
    "gptj": {**GPT, "rotary_dim": 8},
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 64,
        "max_position_embeddings": 512,
    },
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmoe": {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "cohere": LLAMA,
    "granite": LLAMA,
    "granitemoe": {**LLAMA, **LOCAL},
    "deepseek_v3": {
        **LLAMA,
        **LATENT,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "glm": {**HEADED, "pad_token_id": 1},
    "glm4": {**HEADED, "pad_token_id": 1},
    "smollm3": LLAMA,
    "nemotron": LLAMA,
    "persimmon": BERT,
    "biogpt": BERT,
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 512},
    "mamba": {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2},
    "mamba2": {
        "hidden_size": 64,
        "state_size": 8,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 2,
        "chunk_size": 32,
    },
    "recurrent_gemma": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "lru_width": 64,
        "attention_window_size": 64,
    },
    "jamba": {
        **LLAMA,
        **MAMBA,
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}
QUICK = ("llama", "gpt2", "mixtral", "qwen3_moe", "gemma3_text", "gpt_neox", "opt", "bloom", "falcon", "deepseek_v3")
QUICK += ("mamba", "recurrent_gemma")

HEADS = {  # model type -> settings; encoders, encoder-decoders and decoders with a new head
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": {**BERT, "embedding_size": 32},
    "albert": {**BERT, "embedding_size": 32},
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 512},
    "deberta": BERT,
    "deberta-v2": BERT,
    "mpnet": BERT,
    "convbert": {**BERT, "embedding_size": 32},
    "roformer": {**BERT, "embedding_size": 32},
    "modernbert": {**BERT, "local_attention": 64, "global_attn_every_n_layers": 2},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    "bart": {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 512,
    },
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "gpt2": GPT,
    "llama": LLAMA,
    "opt": CAUSAL["opt"],
    "qwen2": LLAMA,
}
QUICK_HEADS = ("bert", "roberta", "deberta-v2", "xlnet", "bart", "gpt2")


def marked(table, quick):
    """The names of a table as pytest's parameters: those that are not quick are marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in table]


def save_causal(name, folder, seed=0):
    """A tiny random model of this architecture with a byte-level tokenizer, saved. Returns the folder."""
    tokenizer = bpe(["<s>", "<|end|>"], template="<s> $A", bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    config = _config(name, CAUSAL, vocab_size=len(tokenizer) + SPARE, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    torch.manual_seed(seed)
    return save(folder, _larger(AutoModelForCausalLM.from_config(config)), tokenizer)


def save_body(name, folder, seed=0):
    """As save_causal, for HEADS: a checkpoint without its classification head, with a word-level tokenizer."""
    _, tokenizer = bert_parts()
    config = _config(
        name, HEADS, vocab_size=len(tokenizer) + SPARE, pad_token_id=tokenizer.pad_token_id, eos_token_id=3
    )
    torch.manual_seed(seed)
    return save(folder, _larger(AutoModelForSequenceClassification.from_config(config)).base_model, tokenizer)


def _config(name, table, **tokens):
    own = {"bos_token_id": 2, **tokens}
    if name in ("t5", "bart"):
        own["decoder_start_token_id"] = own["pad_token_id"]
    return AutoConfig.for_model(name, **{**own, **table[name]})


def _larger(model):
    """The model with weights five times as large: an untrained one gives nearly the same answer to every text."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name.lower():
                weight.mul_(5)
    return model
