#!/usr/bin/env python3
"""Writes docs/openapi.json, which describes the calls over HTTP (docs/http.md),
from the .proto files and their comments. Needs protoc and the Python package
protobuf.

Usage: openapi.py [FILE]
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"
FILES = ["attention/v1/attention.proto", "attention/v1/session.proto"]
TENSOR = ".attention.v1.Tensor"

# HTTP method, path, service, gRPC method.
CALLS = [
    ("post", "/v1/attention:compute", "AttentionService", "ComputeAttention"),
    ("get", "/v1/capabilities", "AttentionService", "GetCapabilities"),
    ("get", "/v1/sessions", "SessionService", "ListSessions"),
    ("post", "/v1/sessions", "SessionService", "CreateSession"),
    ("post", "/v1/sessions:fork", "SessionService", "ForkSessions"),
    ("get", "/v1/sessions/{id}", "SessionService", "GetSession"),
    ("delete", "/v1/sessions/{id}", "SessionService", "DeleteSession"),
    ("post", "/v1/sessions/{id}:append", "SessionService", "AppendKeyValues"),
    ("post", "/v1/sessions/{id}:attend", "SessionService", "Attend"),
    ("post", "/v1/sessions/{id}:truncate", "SessionService", "TruncateSession"),
]

# How proto3 JSON writes the types of fields.
NUMBER = {
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]
}
INT64 = {
    "anyOf": [
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "string", "pattern": "^-?[0-9]{1,18}$"},
    ]
}
INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
Field = pb.FieldDescriptorProto
SCALARS = {
    Field.TYPE_DOUBLE: NUMBER,
    Field.TYPE_FLOAT: NUMBER,
    Field.TYPE_INT64: INT64,
    Field.TYPE_UINT64: INT64,
    Field.TYPE_FIXED64: INT64,
    Field.TYPE_INT32: INT32,
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
WELL_KNOWN = {
    ".google.protobuf.Duration": {
        "type": "string",
        "pattern": "^-?[0-9]{1,9}(\\.[0-9]{1,9})?s$",
    },
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}
LISTS = {
    "TensorLists": (
        "Nested lists of numbers, or of true and false.",
        [NUMBER, {"type": "boolean"}],
    ),
    "IndexLists": (
        "Nested lists of integers.",
        [INT32, {"type": "string", "pattern": "^-?[0-9]{1,9}$"}],
    ),
}


def descriptors():
    """The files, with their comments."""
    with tempfile.NamedTemporaryFile() as output:
        subprocess.run(
            [
                "protoc",
                f"-I{PROTO}",
                "--include_source_info",
                f"--descriptor_set_out={output.name}",
                *FILES,
            ],
            check=True,
        )
        return pb.FileDescriptorSet.FromString(Path(output.name).read_bytes())


class Types:
    """Messages, enums and methods by name, and what is said of them."""

    def __init__(self, files):
        self.messages, self.enums, self.methods = {}, {}, {}
        for file in files.file:
            comments = {
                tuple(location.path): location.leading_comments
                for location in file.source_code_info.location
            }
            scope = "." + file.package
            for i, message in enumerate(file.message_type):
                self._add(scope, message, (4, i), comments)
            for i, enum in enumerate(file.enum_type):
                self.enums[f"{scope}.{enum.name}"] = (
                    enum,
                    text(comments, (5, i)),
                )
            for i, service in enumerate(file.service):
                for j, method in enumerate(service.method):
                    self.methods[service.name, method.name] = (
                        method,
                        text(comments, (6, i, 2, j)),
                    )

    def _add(self, scope, message, path, comments):
        name = f"{scope}.{message.name}"
        fields = [
            text(comments, (*path, 2, i)) for i in range(len(message.field))
        ]
        self.messages[name] = (message, text(comments, path), fields)
        for i, nested in enumerate(message.nested_type):
            self._add(name, nested, (*path, 3, i), comments)
        for i, enum in enumerate(message.enum_type):
            self.enums[f"{name}.{enum.name}"] = (
                enum,
                text(comments, (*path, 4, i)),
            )


def text(comments, path):
    """A comment as it stands in the .proto file, without its first spaces."""
    lines = comments.get(path, "").splitlines()
    return "\n".join(line.removeprefix(" ") for line in lines).strip()


def described(schema, description):
    return {"description": description} | schema if description else schema


def lists(title):
    description, elements = LISTS[title]
    nested = {"$ref": f"#/components/schemas/{title}"}
    return {
        "description": description,
        "type": "array",
        "items": {"anyOf": [*elements, nested]},
    }


def short(name):
    return name.removeprefix(".attention.v1.").replace(".", "")


class Schemas:
    """The schemas of messages, made when they are first asked for. Those of
    requests take nested lists for tensors."""

    def __init__(self, types):
        self.types = types
        self.made = {}

    def reference(self, name, request):
        if name in WELL_KNOWN:
            return WELL_KNOWN[name]
        if name in self.types.enums:
            enum, comment = self.types.enums[name]
            values = [value.name for value in enum.value]
            self.made.setdefault(
                short(name),
                described({"type": "string", "enum": values}, comment),
            )
            return {"$ref": f"#/components/schemas/{short(name)}"}
        return self.message(name, request)

    def tensor(self, title):
        """A tensor of a request: the message, or nested lists."""
        self.made.setdefault(title, lists(title))
        nested = {"$ref": f"#/components/schemas/{title}"}
        return {"anyOf": [self.message(TENSOR), nested]}

    def message(self, name, request=False):
        title = short(name)
        if title not in self.made:
            self.made[title] = {}  # stands for itself inside of itself
            message, comment, field_comments = self.types.messages[name]
            schema = {"type": "object", "additionalProperties": False}
            schema["properties"] = {
                field.json_name: described(self.field(field, request), said)
                for field, said in zip(
                    message.field, field_comments, strict=True
                )
            }
            self.made[title] = described(schema, comment)
        return {"$ref": f"#/components/schemas/{title}"}

    def field(self, field, request):
        if field.type in SCALARS:
            schema = SCALARS[field.type]
        elif field.type_name == TENSOR and request:
            of_integers = field.name == "indices"
            schema = self.tensor("IndexLists" if of_integers else "TensorLists")
        else:
            schema = self.reference(field.type_name, request)
        if field.label == Field.LABEL_REPEATED:
            return {"type": "array", "items": schema}
        return schema


ERROR = {
    "description": "google.rpc.Status, with its details.",
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "integer", "description": "Of google.rpc.Code."},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["@type"],
                "properties": {"@type": {"type": "string"}},
            },
        },
    },
}
# Of any call.
ERRORS = {
    "400": "INVALID_ARGUMENT or FAILED_PRECONDITION",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "NOT_FOUND",
    "405": "the path takes another method",
    "409": "ABORTED or ALREADY_EXISTS",
    "413": "the body is too large",
    "415": "the body is not called JSON",
    "429": "RESOURCE_EXHAUSTED",
    "500": "INTERNAL",
    "501": "UNIMPLEMENTED",
    "503": "UNAVAILABLE",
    "504": "DEADLINE_EXCEEDED",
}


def content(schema):
    return {"application/json": {"schema": schema}}


def operation(types, schemas, http_method, path, service, name):
    method, comment = types.methods[service, name]
    result = {
        "operationId": name,
        "summary": f"{service}.{name}",
        "description": comment,
        "parameters": [],
    }
    if "{id}" in path:
        result["parameters"].append(
            {
                "name": "id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
        )
    if name == "ListSessions":
        for parameter, schema in {
            "page_size": INT32,
            "page_token": {"type": "string"},
        }.items():
            result["parameters"].append(
                {"name": parameter, "in": "query", "schema": schema}
            )
    if http_method == "post":
        result["requestBody"] = {
            "required": True,
            "content": content(
                schemas.message(method.input_type, request=True)
            ),
        }
    result["responses"] = {
        "200": {
            "description": "OK",
            "content": content(schemas.message(method.output_type)),
        }
    }
    for status, description in ERRORS.items():
        result["responses"][status] = {
            "description": description,
            "content": content({"$ref": "#/components/schemas/Error"}),
        }
    return result


def version():
    found = re.search(
        r"project\([^)]*?VERSION\s+([0-9.]+)",
        (ROOT / "CMakeLists.txt").read_text(),
    )
    return found[1]


def document():
    types = Types(descriptors())
    schemas = Schemas(types)
    schemas.made["Error"] = ERROR
    paths = {}
    for http_method, path, service, name in CALLS:
        paths.setdefault(path, {})[http_method] = operation(
            types, schemas, http_method, path, service, name
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Attention over the network",
            "description": "The gRPC methods in proto3 JSON: docs/http.md.",
            "version": version(),
        },
        "servers": [{"url": "http://127.0.0.1:9464"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(schemas.made.items())),
        },
    }


def main(output=ROOT / "docs" / "openapi.json"):
    Path(output).write_text(json.dumps(document(), indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
