"""Which architectures are tested, what is special about them, and what they are
refused: what docs/huggingface.md has a table of."""

import torch

from hf.small_models import VOCABULARY, prompt

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_MOE = {
    **_EXPERTS,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PER_LAYER = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
}
_LATENT = {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
}
# Models that write, and what their configurations need to be small.
FAMILIES = {
    "apertus": {},
    "arcee": {},
    "cohere2": {"sliding_window": 5},
    "bloom": {"n_layer": 2, "n_head": 4},
    "deepseek_v3": _LATENT,
    "deepseek_v32": {
        **_LATENT,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 4,
    },
    "deepseek_v4": {},
    "diffllama": {},
    "doge": {},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 5},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    "gemma": {},
    "gemma2": {
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **_PER_LAYER,
        "sliding_window": 5,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {**_PER_LAYER, "sliding_window": 5, "global_head_dim": 32},
    "glm4": {},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "gptj": {"n_embd": 64, "n_layer": 4, "n_head": 4, "rotary_dim": 8},
    "gpt_oss": {**_LOCAL_EXPERTS, "sliding_window": 5},
    "granite": {},
    "granite_swa": {"sliding_window": 5},
    "granitemoe": _LOCAL_EXPERTS,
    "helium": {},
    "hunyuan_v1_dense": {},
    "inkling2_text": {
        "unpadded_vocab_size": VOCABULARY,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 5,
        "rel_extent": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "lfm2": {},
    "llama": {},
    "llama4_text": {
        "attention_chunk_size": 6,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
    },
    "mimo_v2_flash": {},
    "minimax": {
        **_LOCAL_EXPERTS,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "minimax_m2": _LOCAL_EXPERTS,
    "ministral": {"sliding_window": 5},
    "mistral": {"sliding_window": 5},
    "mixtral": _LOCAL_EXPERTS,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "nemotron": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 5},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    },
    "qwen3": {},
    "qwen3_moe": _MOE,
    "qwen3_next": {
        **_MOE,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 5},
}
# What layers of theirs have that llama's have not.
SPECIAL = {
    "cohere2": "sliding window",
    "deepseek_v3": "keys made of latents",
    "deepseek_v32": "keys made of latents, `indices`",
    "deepseek_v4": "compressed keys, sinks",
    "diffllama": "values in two halves",
    "doge": "a mask made of values",
    "exaone4": "sliding window",
    "falcon_h1": "state space beside attention",
    "gemma2": "sliding window, softcap",
    "gemma3_text": "sliding window",
    "gemma3n_text": "sliding window, keys of other layers",
    "gemma4_text": "sliding window, layers of different head sizes",
    "gpt_oss": "sliding window, sinks",
    "granite_swa": "sliding window, sinks",
    "inkling2_text": "sliding window, sinks for each row, `position_bias`",
    "lfm2": "convolutions in some layers",
    "llama4_text": "chunks",
    "mimo_v2_flash": "sinks, layers of different head sizes",
    "minimax": "linear attention in some layers",
    "ministral": "sliding window",
    "mistral": "sliding window",
    "olmo3": "sliding window",
    "phi3": "sliding window",
    "qwen2": "sliding window",
    "qwen3_next": "linear attention in some layers",
    "starcoder2": "sliding window",
}
# Models that do not ask transformers for their attention: it warns, and they
# compute it themselves, unless they have a RemoteCache.
NOT_ASKING = {"bloom", "mpt"}
_THEIR_KEYS = "keys of layer 0, .* did not reach the attention"
_THEIR_VALUES = "values of layer 0, .* did not reach the attention"
# With what words, with a RemoteCache.
REFUSED_CACHE = {
    "bloom": _THEIR_KEYS,
    # Makes its keys of what the cache keeps.
    "deepseek_v3": _THEIR_KEYS,
    "deepseek_v32": "layers of type indexed_attention",
    "deepseek_v4": "layers of type compressed_sparse_attention",
    "diffllama": _THEIR_VALUES,
    "doge": "attention_mask: got NaN",
    "falcon_h1": "layers of type hybrid",
    "inkling2_text": "layers of type hybrid",
    "minimax": "MiniMax uses cache of its own",
    "mpt": _THEIR_KEYS,
}
# Whose tokens cannot be taken back: layers of different sizes, or with a state.
NOT_CROPPABLE = {"gemma4_text", "mimo_v2_flash", "qwen3_next"}

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
_EMBEDDED = {**_ENCODER, "embedding_size": 64}
_IMAGES = {**_ENCODER, "image_size": 32, "patch_size": 8}
_SOUND = {
    **_ENCODER,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_BOTH = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "init_std": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}


def _random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def _text():
    ids = prompt(2)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


_TEXT = _text()
_TEXT_TO_TEXT = {**_TEXT, "decoder_input_ids": prompt(2, 5)}
_PIXELS = {"pixel_values": _random(2, 3, 32, 32)}
_SAMPLES = {"input_values": _random(2, 400)}
# Models that read, or read and write: settings, inputs, and what is special.
READERS = {
    "albert": (_EMBEDDED, _TEXT, ""),
    "bert": (_ENCODER, _TEXT, ""),
    "distilbert": (
        {
            "vocab_size": VOCABULARY,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 96,
            "initializer_range": 0.4,
            "pad_token_id": 0,
        },
        _TEXT,
        "",
    ),
    "electra": (_EMBEDDED, _TEXT, ""),
    "eurobert": (_ENCODER, _TEXT, ""),
    "layoutlm": (_ENCODER, _TEXT, ""),
    "modernbert": (_ENCODER, _TEXT, "window to both sides"),
    "nomic_bert": (_ENCODER, _TEXT, ""),
    "roberta": (_ENCODER, _TEXT, ""),
    "clip_text_model": (
        {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2},
        _TEXT,
        "causal",
    ),
    "beit": (_IMAGES, _PIXELS, "images"),
    "clip_vision_model": (_IMAGES, _PIXELS, "images"),
    "deit": (_IMAGES, _PIXELS, "images"),
    "dinov2": (_IMAGES, _PIXELS, "images"),
    "siglip_vision_model": (_IMAGES, _PIXELS, "images"),
    "vit": (_IMAGES, _PIXELS, "images"),
    "hubert": (_SOUND, _SAMPLES, "sound"),
    "wav2vec2": (_SOUND, _SAMPLES, "sound"),
    "bart": (_BOTH, _TEXT_TO_TEXT, "encoder and decoder"),
    "m2m_100": (_BOTH, _TEXT_TO_TEXT, "encoder and decoder"),
    "marian": (_BOTH, _TEXT_TO_TEXT, "encoder and decoder"),
    "mbart": (_BOTH, _TEXT_TO_TEXT, "encoder and decoder"),
    "pegasus": (_BOTH, _TEXT_TO_TEXT, "encoder and decoder"),
    "whisper": (
        {
            **_BOTH,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
        },
        {
            "input_features": _random(2, 8, 40),
            "decoder_input_ids": prompt(2, 5),
        },
        "sound, encoder and decoder",
    ),
    "longt5": (_T5, _TEXT_TO_TEXT, "`position_bias` in the decoder"),
    "mt5": (_T5, _TEXT_TO_TEXT, "`position_bias`"),
    "switch_transformers": (_T5, _TEXT_TO_TEXT, "`position_bias`"),
    "t5": (_T5, _TEXT_TO_TEXT, "`position_bias`"),
    "umt5": (_T5, _TEXT_TO_TEXT, "`position_bias`"),
}
# That compute attention themselves, like those of NOT_ASKING.
NOT_ASKING_READERS = ("deberta-v2", "megatron-bert", "mpnet", "wavlm")


def table():
    """The table of docs/huggingface.md."""
    lines = [
        "| `model_type` | special | without a cache in the server | `RemoteCache` |",
        "|---|---|---|---|",
    ]
    for kind in sorted(FAMILIES):
        kept = "yes"
        if kind in REFUSED_CACHE:
            kept = "refused"
        elif kind in NOT_CROPPABLE:
            kept = "yes, cannot be cropped"
        stateless = "not used" if kind in NOT_ASKING else "yes"
        lines.append(
            f"| {kind} | {SPECIAL.get(kind, '')} | {stateless} | {kept} |"
        )
    for kind, (_, inputs, special) in sorted(READERS.items()):
        decodes = "decoder_input_ids" in inputs
        kept = "the decoder's" if decodes else "nothing to keep"
        lines.append(f"| {kind} | {special} | yes | {kept} |")
    lines += [f"| {kind} |  | not used | |" for kind in NOT_ASKING_READERS]
    return "\n".join(lines) + "\n"
