"""Arrow Flight: a batch of one row, a column per tensor, copied nowhere in
Python. Its server is C++ under Python's."""

import json
import struct

import numpy as np
import pyarrow as pa
from pyarrow import flight

UNLIMITED = [("grpc.max_receive_message_length", -1)]


def one_row(arrays):
    columns = [
        pa.Array.from_buffers(
            pa.large_binary(),
            1,
            [
                None,
                pa.py_buffer(struct.pack("<qq", 0, array.nbytes)),
                pa.py_buffer(np.ascontiguousarray(array)),
            ],
        )
        for array in arrays
    ]
    names = [str(i) for i in range(len(columns))]
    return pa.RecordBatch.from_arrays(columns, names)


def arrays_of(batch, shapes):
    return [
        np.frombuffer(column.buffers()[2], np.float32).reshape(shape)
        for column, shape in zip(batch.columns, shapes, strict=True)
    ]


class Server(flight.FlightServerBase):
    def __init__(self, attend):
        super().__init__("grpc://127.0.0.1:0")
        self._attend = attend

    def do_exchange(self, context, descriptor, reader, writer):
        *shapes, causal = json.loads(descriptor.command)
        tensors = arrays_of(reader.read_chunk().data, shapes)
        answer = one_row([self._attend(*tensors, causal)])
        writer.begin(answer.schema)
        writer.write_batch(answer)


def serve(attend, listening):
    server = Server(attend)
    listening(f"127.0.0.1:{server.port}")
    server.serve()


class Caller:
    def __init__(self, address):
        self._client = flight.connect(
            f"grpc://{address}", generic_options=UNLIMITED
        )

    def prepare(self, query, key, value, causal):
        shapes = [query.shape, key.shape, value.shape]
        descriptor = flight.FlightDescriptor.for_command(
            json.dumps([*shapes, causal])
        )

        def call():
            batch = one_row([query, key, value])
            writer, reader = self._client.do_exchange(descriptor)
            with writer:
                writer.begin(batch.schema)
                writer.write_batch(batch)
                writer.done_writing()
                (output,) = arrays_of(reader.read_chunk().data, [query.shape])
                return output

        return call
