"""Triton with shared memory into which every call copies its tensors, and out
of which it copies the output."""

from benchmarks.rpc import triton_memory


class Caller(triton_memory.Caller):
    def prepare(self, query, key, value, causal):
        in_place = super().prepare(query, key, value, causal)
        tensors = {"query": query, "key": key, "value": value}

        def call():
            for name, array in tensors.items():
                self.copy_in(name, array)
            return in_place().copy()

        return call
