"""This project's Python client; the tensors lie in memory of Client.empty(),
which is shared with the server where that is possible."""

import numpy as np

from benchmarks.rpc import own_client


class Caller(own_client.Caller):
    def prepare(self, query, key, value, causal):
        placed = []
        for array in (query, key, value):
            placed.append(self._client.empty(array.shape, array.dtype))
            np.copyto(placed[-1], array)
        return super().prepare(*placed, causal)
