"""What stock tritonclient gets of the server: sync, asyncio and on a
stream, over HTTP, and in shared memory.

Run with the Python that has it: triton_client.py ADDRESS HTTP_ADDRESS FOLDER. Reads cases from
FOLDER/NAME.npz, arrays by the names of inputs, with what else to ask for in
FOLDER/NAME.json: "datatypes", "parameters" and "outputs". Writes FOLDER/answers.npz:
an array for each "WAY/NAME/OUTPUT".
"""

import asyncio
import json
import os
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import (
    InferenceServerException,
    shared_memory,
    triton_to_np_dtype,
)

# What HTTP carries in one body, here: a little less than 8 MiB.
HTTP_BYTES = 8_000_000


class Case:
    def __init__(self, path):
        self.name = path.stem
        asked = json.loads(path.with_suffix(".json").read_text())
        self.outputs = asked["outputs"]
        self.arrays = dict(np.load(path))
        self.datatypes = {
            name: asked["datatypes"].get(name, "FP32") for name in self.arrays
        }
        inputs = []
        for name, array in self.arrays.items():
            datatype = self.datatypes[name]
            tensor = triton.InferInput(name, list(array.shape), datatype)
            inputs.append(tensor.set_data_from_numpy(array))
        self.arguments = {
            "model_name": "attention",
            "inputs": inputs,
            "request_id": self.name,
            "parameters": asked["parameters"],
            "outputs": [
                triton.InferRequestedOutput(name) for name in self.outputs
            ],
        }

    def fits_http(self):
        return sum(a.nbytes for a in self.arrays.values()) < HTTP_BYTES

    def has_numbers(self):
        """Whether JSON has numbers for its answer."""
        return self.datatypes["query"] in ("FP32", "FP64")

    def over_http(self, binary):
        inputs = []
        for name, array in self.arrays.items():
            tensor = triton_http.InferInput(
                name, list(array.shape), self.datatypes[name]
            )
            tensor.set_data_from_numpy(array, binary_data=binary)
            inputs.append(tensor)
        return self.arguments | {
            "inputs": inputs,
            "outputs": [
                triton_http.InferRequestedOutput(name, binary_data=binary)
                for name in self.outputs
            ],
        }

    def save(self, way, result, answers):
        response = result.get_response()
        id_ = response["id"] if isinstance(response, dict) else response.id
        assert id_ == self.name
        for name in self.outputs:
            answers[f"{way}/{self.name}/{name}"] = result.as_numpy(name)


def bad_request(case):
    return case.arguments | {"parameters": {"casual": 1}}


def check_error(error):
    assert isinstance(error, InferenceServerException), error
    assert "parameters.casual: unknown" in error.message(), error


def ask_in_turn(address, cases, answers):
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("attention")
        assert client.get_server_metadata().name == "attention_server"
        metadata = client.get_model_metadata("attention", as_json=True)
        assert metadata["inputs"][0]["name"] == "query"
        config = client.get_model_config("attention").config
        assert [i.name for i in config.input if not i.optional] == [
            "query",
            "key",
            "value",
        ]
        assert client.get_model_repository_index().models[0].state == "READY"
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        before = count_inferences(client)
        for case in cases:
            case.save("sync", client.infer(**case.arguments), answers)
        assert count_inferences(client) == before + len(cases)
        try:
            client.infer(**bad_request(cases[0]))
        except InferenceServerException as error:
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            check_error(error)
        else:
            raise AssertionError("a bad request was answered")


def count_inferences(client):
    statistics = client.get_inference_statistics("attention")
    return statistics.model_stats[0].inference_count


async def ask_at_once(address, cases, answers):
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        results = await asyncio.gather(
            *(client.infer(**case.arguments) for case in cases)
        )
        for case, result in zip(cases, results, strict=True):
            case.save("aio", result, answers)

        async def requests():
            for case in cases:
                yield case.arguments
                yield bad_request(case)

        stream = client.stream_infer(requests())
        for case in cases:
            result, error = await anext(stream)
            assert error is None
            case.save("aio_stream", result, answers)
            result, error = await anext(stream)
            check_error(error)


def ask_on_a_stream(address, cases, answers):
    came = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for case in cases:
            client.async_stream_infer(**case.arguments)
            client.async_stream_infer(**bad_request(case))
        for case in cases:
            result, error = came.get(timeout=60)
            assert error is None
            case.save("stream", result, answers)
            result, error = came.get(timeout=60)
            check_error(error)
        client.stop_stream()


def ask_over_http(address, cases, answers):
    with triton_http.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("attention")
        assert not client.is_model_ready("another")
        assert client.get_server_metadata()["name"] == "attention_server"
        metadata = client.get_model_metadata("attention", "1")
        assert metadata["inputs"][0]["name"] == "query"
        # Numbers, not texts as in proto3 JSON.
        assert all(type(n) is int for n in metadata["inputs"][0]["shape"])
        config = client.get_model_config("attention")
        assert config["input"][0]["name"] == "query"
        index = client.get_model_repository_index()
        assert index[0]["state"] == "READY"
        assert client.get_system_shared_memory_status() == []
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        before = count_over_http(client)
        for case in cases:
            case.save("http", client.infer(**case.over_http(True)), answers)
            if case.has_numbers():
                result = client.infer(**case.over_http(False))
                case.save("http_numbers", result, answers)
        numbers = sum(case.has_numbers() for case in cases)
        assert count_over_http(client) == before + len(cases) + numbers
        # Without outputs, which then come as bytes.
        arguments = cases[0].over_http(True) | {"outputs": None}
        result = client.infer(**arguments)
        assert result.as_numpy("output") is not None
        try:
            client.infer(
                **(cases[0].over_http(True) | {"parameters": {"casual": 1}})
            )
        except InferenceServerException as error:
            assert error.status() == "400"
            check_error(error)
        else:
            raise AssertionError("a bad request was answered")


def count_over_http(client):
    statistics = client.get_inference_statistics("attention")
    return statistics["model_stats"][0]["inference_count"]


async def ask_over_http_at_once(address, cases, answers):
    async with triton_http_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(
            *(client.infer(**case.over_http(True)) for case in cases)
        )
        for case, result in zip(cases, results, strict=True):
            case.save("http_aio", result, answers)


class SharedCase:
    """A case's tensors in one shared memory object, inputs first, then room for
    each output."""

    ROOM = 1 << 22  # For an output.

    def __init__(self, case, client):
        self.case = case
        self.client = client
        inputs = sum(array.nbytes for array in case.arrays.values())
        self.bytes = inputs + self.ROOM * len(case.outputs)
        self.key = f"/attention-interop-{os.getpid()}"

    def __enter__(self):
        self.memory = shared_memory.create_shared_memory_region(
            "case", self.key, self.bytes
        )
        self.client.register_system_shared_memory("case", self.key, self.bytes)
        return self

    def __exit__(self, *_):
        self.client.unregister_system_shared_memory("case")
        shared_memory.destroy_shared_memory_region(self.memory)

    def arguments(self, module):
        inputs, at = [], 0
        for name, array in self.case.arrays.items():
            shared_memory.set_shared_memory_region(
                self.memory, [array], offset=at
            )
            tensor = module.InferInput(
                name, list(array.shape), self.case.datatypes[name]
            )
            tensor.set_shared_memory("case", array.nbytes, offset=at)
            inputs.append(tensor)
            at += array.nbytes
        self.places, outputs = {}, []
        for name in self.case.outputs:
            output = module.InferRequestedOutput(name)
            output.set_shared_memory("case", self.ROOM, offset=at)
            self.places[name] = at
            outputs.append(output)
            at += self.ROOM
        return self.case.arguments | {"inputs": inputs, "outputs": outputs}

    def save(self, way, result, answers):
        for name, at in self.places.items():
            output = result.get_output(name)
            if isinstance(output, dict):  # Over HTTP.
                datatype, shape = output["datatype"], output["shape"]
            else:
                datatype, shape = output.datatype, list(output.shape)
            answers[f"{way}/{self.case.name}/{name}"] = (
                shared_memory.get_contents_as_numpy(
                    self.memory, triton_to_np_dtype(datatype), shape, at
                ).copy()
            )


def ask_in_shared_memory(module, way, address, cases, answers):
    with module.InferenceServerClient(address) as client:
        for case in cases:
            with SharedCase(case, client) as shared:
                result = client.infer(**shared.arguments(module))
                shared.save(way, result, answers)
        try:
            client.register_system_shared_memory("case", "/etc/passwd", 8)
        except InferenceServerException as error:
            assert "passwd" not in str(error)
        else:
            raise AssertionError("a file was registered as memory")
        status = client.get_system_shared_memory_status()
        assert not (status if way == "http_memory" else status.regions)


def main(address, http_address, folder):
    cases = [Case(path) for path in sorted(Path(folder).glob("*.npz"))]
    answers = {}
    ask_in_turn(address, cases, answers)
    asyncio.run(ask_at_once(address, cases, answers))
    ask_on_a_stream(address, cases, answers)
    small = [case for case in cases if case.fits_http()]
    ask_over_http(http_address, small, answers)
    asyncio.run(ask_over_http_at_once(http_address, small, answers))
    ask_in_shared_memory(triton, "memory", address, cases, answers)
    ask_in_shared_memory(
        triton_http, "http_memory", http_address, cases, answers
    )
    np.savez(Path(folder, "answers.npz"), **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
