"""The picker's own descriptions of messages are Envoy's."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

from ghostcacher_router.epp import protocol

ENUM, INT32 = 14, 5


def published(name: str) -> Any:
    """Return the published description of a message."""
    from envoy.config.core.v3 import base_pb2
    from envoy.service.ext_proc.v3 import external_processor_pb2
    from envoy.type.v3 import http_status_pb2

    files = (external_processor_pb2.DESCRIPTOR, base_pb2.DESCRIPTOR, http_status_pb2.DESCRIPTOR)
    return next(file.message_types_by_name[name] for file in files if name in file.message_types_by_name)


def facts(field: Any) -> tuple[object, ...]:
    """Return what of a field is on the wire, and what its name and its oneof are."""
    kind = INT32 if field.type == ENUM else field.type
    oneof = field.containing_oneof and field.containing_oneof.name
    return field.name, field.number, kind, field.is_repeated, oneof, field.message_type and field.message_type.name


@pytest.mark.parametrize("name", protocol.MESSAGES)
def test_message_is_the_published_one(name: str) -> None:
    theirs = published(name).fields_by_name
    for field in protocol.classes[name].DESCRIPTOR.fields:
        assert facts(field) == facts(theirs[field.name])


def test_oneof_has_the_published_fields_that_are_described() -> None:
    for name, (oneof, *_) in protocol.ONE_OF.items():
        theirs = {field.name for field in published(name).oneofs_by_name[oneof].fields}
        assert {field.name for field in protocol.classes[name].DESCRIPTOR.oneofs_by_name[oneof].fields} <= theirs


def test_what_is_not_described_survives() -> None:
    """A request with fields that are not known here is read, and has them when it is written again."""
    from envoy.service.ext_proc.v3 import external_processor_pb2 as published_messages

    request = published_messages.ProcessingRequest()
    request.request_headers.headers.headers.add(key="a", raw_value=b"b")
    request.attributes["x"].fields["y"].string_value = "z"
    read = protocol.ProcessingRequest.FromString(request.SerializeToString())
    assert read.WhichOneof("request") == "request_headers"
    assert published_messages.ProcessingRequest.FromString(read.SerializeToString()) == request
