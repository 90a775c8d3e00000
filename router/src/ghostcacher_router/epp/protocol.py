"""The messages of Envoy's ext_proc protocol that the picker reads, as classes of protobuf.

Envoy publishes them as `.proto` files: `envoy/service/ext_proc/v3/external_processor.proto`, and what it imports.
The package that has classes made of them, `xds-protos`, also has older modules of OpenTelemetry and of Google's APIs,
and puts them over those of others. So the few messages that are needed are described here, by the names, numbers and
types of these files, in a pool of their own: classes made of the published files can be imported beside them.

What is left out here is passed over when it is read: of a peer that is newer, too. Answers: messages.py.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

PACKAGE = "envoy.service.ext_proc.v3"

MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
        "metadata_context": (8, "Metadata"),
        "observability_mode": (10, "bool"),
        "protocol_config": (11, "ProtocolConfiguration"),
    },
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "HeaderMap": {"headers": (1, "repeated HeaderValue")},
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "Metadata": {"filter_metadata": (1, "map Struct")},
    "ProtocolConfiguration": {"request_body_mode": (1, "int32"), "response_body_mode": (2, "int32")},
}
"""Message -> field -> its number, and its type: a message's name or a scalar, by itself, ``repeated``, or as the values
of a ``map`` from strings. Enumerations are int32, which is the same on the wire."""

ONE_OF = {
    "ProcessingRequest": ("request", "request_headers", "response_trailers"),
}
"""Message -> the name of its ``oneof``, and the first and the last field that belong to it."""

_SCALARS = {"bool", "bytes", "int32", "string"}
_Field = descriptor_pb2.FieldDescriptorProto


def _describe(name: str, fields: dict[str, tuple[int, str]]) -> Any:
    """Return the description of one message."""
    message = descriptor_pb2.DescriptorProto(name=name)
    chosen, first, last = ONE_OF.get(name, ("", "", ""))
    if chosen:
        message.oneof_decl.add(name=chosen)
    names = list(fields)
    for field, (number, type_text) in fields.items():
        *how, type_name = type_text.split()
        added = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
        if how == ["map"]:
            entry = message.nested_type.add(name="".join(map(str.capitalize, field.split("_"))) + "Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
            _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), type_name)
            type_name = f"{name}.{entry.name}"
        if how:
            added.label = _Field.LABEL_REPEATED
        _set_type(added, type_name)
        if chosen and names.index(first) <= names.index(field) <= names.index(last):
            added.oneof_index = 0
    return message


def _set_type(field: Any, name: str) -> None:
    if name in _SCALARS:
        field.type = getattr(_Field, f"TYPE_{name.upper()}")
        return
    field.type = _Field.TYPE_MESSAGE
    field.type_name = ".google.protobuf.Struct" if name == "Struct" else f".{PACKAGE}.{name}"


def _classes() -> dict[str, Any]:
    """Return the class of each message by its name."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="ghostcacher/ext_proc.proto", package=PACKAGE, syntax="proto3", dependency=[struct_pb2.DESCRIPTOR.name]
    )
    file.message_type.extend(_describe(name, fields) for name, fields in MESSAGES.items())
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


classes = _classes()
ProcessingRequest = classes["ProcessingRequest"]
