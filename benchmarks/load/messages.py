"""Requests made by hand, also such as no client library would make.

The protobuf wire format of attention.v1.ComputeAttentionRequest, and its size
as gRPC frames it. Numbers are field numbers of attention.proto.
"""

METHOD = "/attention.v1.AttentionService/ComputeAttention"
FLOAT32 = 1
LAYOUTS = {"matrix": 1, "packed": 2, "bhsd": 3, "bshd": 4, "ragged": 5}


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def number_field(number, value):
    return varint(number << 3) + varint(value)


def bytes_field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def packed_field(number, values):
    return bytes_field(number, b"".join(map(varint, values)))


def tensor(shape, data=None):
    """FLOAT32 zeros; or of these bytes, whether or not they fit."""
    if data is None:
        elements = 1
        for size in shape:
            elements *= size
        data = bytes(4 * elements)
    return (
        number_field(1, FLOAT32) + packed_field(2, shape) + bytes_field(3, data)
    )


def request(query, key, value, layout="matrix", heads=None, **lengths):
    """A request of tensors; `lengths`: valid_lengths, query_starts, key_starts."""
    options = number_field(1, LAYOUTS[layout])
    if heads:
        options += number_field(2, heads[0]) + number_field(3, heads[1])
    numbers = {"valid_lengths": 7, "query_starts": 8, "key_starts": 9}
    parts = [bytes_field(1, query), bytes_field(2, key), bytes_field(3, value)]
    parts += [
        packed_field(numbers[name], list(v)) for name, v in lengths.items()
    ]
    return b"".join([*parts, bytes_field(10, options)])
