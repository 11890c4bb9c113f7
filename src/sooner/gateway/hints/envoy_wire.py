"""Envoy's messages of `ext_proc`, as far as a hint needs them; what else they carry is passed over.

The numbers are those of `api/envoy/service/ext_proc/v3/external_processor.proto`, of `HeaderMap`,
`HeaderValue` and `HeaderValueOption` in `api/envoy/config/core/v3/base.proto`, and of `BodySendMode` in
`api/envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto`, as of envoyproxy/envoy 0015fbd and
envoy-data-plane 2.2.0; tried with envoy 1.40.0. An enum is an int32 here: the bytes are the same.
"""

from __future__ import annotations

from typing import Any

from sooner.core import MissingExtra

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
except ImportError as error:
    raise MissingExtra("protobuf", "envoy") from error

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH_SERVICE = "grpc.health.v1.Health"

_PACKAGE = "sooner.envoy"
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, "int32")},
    "HeaderMap": {"headers": (1, "HeaderValue*")},
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "ProtocolConfiguration": {"request_body_mode": (1, "int32"), "response_body_mode": (2, "int32")},
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
        "observability_mode": (10, "bool"),
        "protocol_config": (11, "ProtocolConfiguration"),
    },
    "HeaderMutation": {"set_headers": (1, "HeaderValueOption*")},
    "StreamedBodyResponse": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "BodyMutation": {"body": (1, "bytes"), "streamed_response": (3, "StreamedBodyResponse")},
    "CommonResponse": {"header_mutation": (2, "HeaderMutation"), "body_mutation": (3, "BodyMutation")},
    "HeadersResponse": {"response": (1, "CommonResponse")},
    "BodyResponse": {"response": (1, "CommonResponse")},
    "TrailersResponse": {"header_mutation": (1, "HeaderMutation")},
    "ProcessingResponse": {
        "request_headers": (1, "HeadersResponse"),
        "response_headers": (2, "HeadersResponse"),
        "request_body": (3, "BodyResponse"),
        "response_body": (4, "BodyResponse"),
        "request_trailers": (5, "TrailersResponse"),
        "response_trailers": (6, "TrailersResponse"),
    },
}
_SCALARS = {"string": 9, "bytes": 12, "bool": 8, "int32": 5}  # FieldDescriptorProto.Type
_OPTIONAL, _REPEATED, _MESSAGE = 1, 3, 11  # FieldDescriptorProto.Label and .Type


def _classes() -> dict[str, Any]:
    """Return a class for each of the messages, of a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="sooner/envoy.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        made = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            one = made.field.add(name=field, number=number)
            one.label = _REPEATED if kind.endswith("*") else _OPTIONAL
            one.type = _SCALARS.get(kind, _MESSAGE)
            if one.type == _MESSAGE:
                one.type_name = f".{_PACKAGE}.{kind.removesuffix('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _FIELDS
    }


_CLASSES = _classes()
ProcessingRequest: Any = _CLASSES["ProcessingRequest"]
ProcessingResponse: Any = _CLASSES["ProcessingResponse"]
Unreadable = message.DecodeError

KINDS = tuple(_FIELDS["ProcessingResponse"])
"""What a message of Envoy's may be about; each is answered by the field of the same name."""

CONTINUE: dict[str, bytes] = {kind: ProcessingResponse(**{kind: {}}).SerializeToString() for kind in KINDS}
"""The answer to each kind that changes nothing."""

OVERWRITE_OR_ADD, OVERWRITE_IF_THERE = 2, 3
"""HeaderValueOption.HeaderAppendAction."""

NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX = range(5)
"""ProcessingMode.BodySendMode."""


def method_and_path(headers: Any) -> tuple[str, str]:
    """Return a request's method, and its path without the query."""
    found = {
        one.key: one.raw_value.decode("utf-8", "replace") or one.value  # older ones have no raw_value
        for one in headers.headers.headers
        if one.key.startswith(":")
    }
    return found.get(":method", ""), found.get(":path", "").partition("?")[0]


def set_header(name: str, value: bytes, action: int = OVERWRITE_OR_ADD) -> dict[str, Any]:
    """Return a header as one of a message's `set_headers`."""
    return {"header": {"key": name, "raw_value": value}, "append_action": action}


def answer(kind: str, headers: list[dict[str, Any]], body: dict[str, Any] | None = None) -> bytes:
    """Return the answer to a message of `kind` that sets `headers` and replaces the body."""
    common: dict[str, Any] = {}
    if headers:
        common["header_mutation"] = {"set_headers": headers}
    if body is not None:
        common["body_mutation"] = body
    made: bytes = ProcessingResponse(**{kind: {"response": common}}).SerializeToString()
    return made
