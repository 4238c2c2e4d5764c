"""Triton, started by PyTriton; its gRPC client sends the numbers in messages."""

import os
import signal
import socket
import sys
import sysconfig

import numpy as np
import tritonclient.grpc

MODEL = "attention"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve(attend, listening):
    # Triton's own Python has to be this one, not another of the same number.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

    def infer(requests):
        return [
            {
                "output": attend(
                    request["query"],
                    request["key"],
                    request["value"],
                    bool(request["causal"][0]),
                )
            }
            for request in requests
        ]

    def tensor(name):
        return Tensor(name=name, dtype=np.float32, shape=(-1, -1, -1, -1))

    # Between choosing and binding somebody may take a port: the start fails.
    port = free_port()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=free_port(),
        grpc_address="127.0.0.1",
        grpc_port=port,
        allow_metrics=False,
    )
    # Anybody may register shared memory.
    security = TritonSecurityConfig(restricted_endpoints=[])
    # Leaves the context when told to end, which ends Triton's processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Triton(config=config, security_config=security) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=infer,
            inputs=[
                *map(tensor, ("query", "key", "value")),
                Tensor(name="causal", dtype=np.bool_, shape=(1,)),
            ],
            outputs=[tensor("output")],
            config=ModelConfig(batching=False),
        )
        triton.run()
        listening(f"127.0.0.1:{port}")
        triton.serve()


def make_input(name, array, datatype="FP32"):
    made = tritonclient.grpc.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


class Caller:
    def __init__(self, address):
        self._client = tritonclient.grpc.InferenceServerClient(address)

    def prepare(self, query, key, value, causal):
        causal = np.array([causal])

        def call():
            inputs = [
                make_input("query", query),
                make_input("key", key),
                make_input("value", value),
                make_input("causal", causal, "BOOL"),
            ]
            return self._client.infer(MODEL, inputs).as_numpy("output")

        return call
