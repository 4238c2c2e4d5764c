"""Arrow Flight moves the same bytes: a server, and a client that measures.

    python -m benchmarks.rpc.flight serve
    python -m benchmarks.rpc.flight measure ADDRESS

The server computes nothing. For each line "REQUEST_BYTES... ANSWER_BYTES CALLS"
of standard input the client prints one with a time per call, in milliseconds.
"""

import struct
import sys
import time

import pyarrow as pa
from pyarrow import flight

DESCRIPTOR = flight.FlightDescriptor.for_path("attention")


def one_row(payloads):
    """A batch of one row and a column per payload, without a copy."""
    columns = [
        pa.Array.from_buffers(
            pa.large_binary(),
            1,
            [None, pa.py_buffer(struct.pack("<qq", 0, len(payload))), payload],
        )
        for payload in payloads
    ]
    names = [str(i) for i in range(len(columns))]
    return pa.RecordBatch.from_arrays(columns, names)


class Server(flight.FlightServerBase):
    def do_exchange(self, context, descriptor, reader, writer):
        bytes_wanted = int(descriptor.path[1])
        chunk = reader.read_chunk().data
        assert chunk.num_rows == 1
        answer = one_row([pa.py_buffer(bytes(bytes_wanted))])
        writer.begin(answer.schema)
        writer.write_batch(answer)


def call(client, batch, answer_bytes):
    descriptor = flight.FlightDescriptor.for_path(
        "attention", str(answer_bytes)
    )
    writer, reader = client.do_exchange(descriptor)
    with writer:
        writer.begin(batch.schema)
        writer.write_batch(batch)
        writer.done_writing()
        answer = reader.read_chunk().data.column(0)
        assert len(answer.buffers()[2]) == answer_bytes


def measure(address):
    client = flight.connect(f"grpc://{address}")
    for line in sys.stdin:
        *request, answer_bytes, calls = map(int, line.split())
        batch = one_row([pa.py_buffer(bytes(size)) for size in request])
        times = []
        for _ in range(1 + calls):
            begin = time.perf_counter()
            call(client, batch, answer_bytes)
            times.append((time.perf_counter() - begin) * 1000)
        # The first warms up.
        print(*times[1:], flush=True)


def main():
    if sys.argv[1:] == ["serve"]:
        server = Server("grpc://127.0.0.1:0")
        print(f"listening on 127.0.0.1:{server.port}", flush=True)
        server.serve()
    elif len(sys.argv) == 3 and sys.argv[1] == "measure":
        measure(sys.argv[2])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
