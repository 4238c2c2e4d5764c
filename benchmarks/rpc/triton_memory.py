"""Triton with shared memory, as its documentation shows it: the tensors lie in
regions that the server knows, the output is read where the server put it.
triton_memory_copied.py begins with tensors that lie elsewhere."""

import os

import numpy as np
import tritonclient.grpc
from tritonclient.utils import shared_memory

from benchmarks.rpc.programs import region_name
from benchmarks.rpc.triton import MODEL, make_input


class Region:
    """Memory for one tensor that the server has mapped too."""

    def __init__(self, client, name, nbytes):
        self._client, self.nbytes = client, nbytes
        self.name = region_name(os.getpid(), name)
        self.handle = shared_memory.create_shared_memory_region(
            self.name, "/" + self.name, nbytes
        )
        client.register_system_shared_memory(self.name, "/" + self.name, nbytes)

    def close(self):
        self._client.unregister_system_shared_memory(self.name)
        shared_memory.destroy_shared_memory_region(self.handle)


class Caller:
    def __init__(self, address):
        self._client = tritonclient.grpc.InferenceServerClient(address)
        self._regions = {}

    def _close_regions(self):
        for region in self._regions.values():
            region.close()
        self._regions = {}

    def _open_region(self, name, nbytes):
        region = self._regions[name] = Region(self._client, name, nbytes)
        return region

    def copy_in(self, name, array):
        handle = self._regions[name].handle
        shared_memory.set_shared_memory_region(handle, [array])

    def _make_input(self, name, array):
        region = self._open_region(name, array.nbytes)
        self.copy_in(name, array)
        made = tritonclient.grpc.InferInput(name, array.shape, "FP32")
        made.set_shared_memory(region.name, region.nbytes)
        return made

    def prepare(self, query, key, value, causal):
        self._close_regions()
        tensors = {"query": query, "key": key, "value": value}
        inputs = [
            *(self._make_input(name, a) for name, a in tensors.items()),
            make_input("causal", np.array([causal]), "BOOL"),
        ]
        output = self._open_region("output", query.nbytes)
        wanted = tritonclient.grpc.InferRequestedOutput("output")
        wanted.set_shared_memory(output.name, output.nbytes)

        def call():
            self._client.infer(MODEL, inputs, outputs=[wanted])
            return shared_memory.get_contents_as_numpy(
                output.handle, np.float32, query.shape
            )

        return call

    def close(self):
        self._close_regions()
