"""PyTorch computes: behind the servers of others, and here, without one."""

import os
import warnings

import torch
from torch.nn.functional import scaled_dot_product_attention

# Nothing writes to what came in a message.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")
torch.set_num_threads(os.cpu_count())


def attend(query, key, value, causal):
    """NumPy in (1, H, S, D), NumPy out."""
    query, key, value = map(torch.from_numpy, (query, key, value))
    with torch.inference_mode():
        # Decoding: a group's query heads as rows of one head, several times as
        # fast as PyTorch's own way.
        if query.shape[2] == 1:
            rows = query.view(1, key.shape[1], -1, query.shape[3])
            output = scaled_dot_product_attention(rows, key, value)
            return output.reshape(query.shape).numpy()
        return scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            enable_gqa=query.shape[1] != key.shape[1],
        ).numpy()


class Caller:
    """No server: the computation alone."""

    def __init__(self, address):
        pass

    def prepare(self, query, key, value, causal):
        return lambda: attend(query, key, value, causal)
