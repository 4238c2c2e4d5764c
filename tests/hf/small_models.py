"""Small models with random weights, and their generate()."""

import torch
import transformers

VOCABULARY = 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Large, so that what is attended to decides which token comes next.
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


def small_model(kind, auto=transformers.AutoModelForCausalLM, **settings):
    """A model of one of transformers' types, the same every time."""
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **settings})
    torch.manual_seed(0)
    return auto.from_config(config, attn_implementation="eager").eval()


def prompt(rows=1, tokens=9):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=generator)


def generate(model, implementation, ids, cache=None, **options):
    """The tokens, the prompt's included."""
    model.set_attn_implementation(implementation)
    torch.manual_seed(1)
    options = {
        "max_new_tokens": 16,
        "eos_token_id": None,
        # Random models like to say the same token again and again.
        "repetition_penalty": 3.0,
        **options,
    }
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, cache=cache, pad_token_id=0, **options)
