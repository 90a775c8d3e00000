"""What is read from a gateway's messages, and the answers to them: the protobuf side of the picker. No I/O.

Names are those of the endpoint picker protocol. Messages that come are typed as Any, since their classes are made at
run time. Answers are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ghostcacher_router.epp.protocol import PACKAGE

SERVICE = f"{PACKAGE}.ExternalProcessor"

NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
PREFILLER = "x-prefiller-host-port"
"""How llm-d names the server that computes the prompt; the sidecar of the one that answers reads it."""

NAMES_MAX = 64
"""Of headers that are set, as they are sent: a handful."""
SUBSET_MAX = 8192
"""Endpoints of one subset that are read."""

NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX, GRPC = range(6)
"""How bodies are sent: `ProcessingMode.BodySendMode`."""

Headers = Sequence[tuple[str, bytes]]


def headers_of(message: Any) -> dict[bytes, bytes]:
    """Return the headers of an HttpHeaders message by lower-case name; of several with one name, joined by commas."""
    found: dict[bytes, bytes] = {}
    for header in message.headers.headers:
        name, value = header.key.lower().encode(), header.raw_value or header.value.encode()
        found[name] = b"%b,%b" % (found[name], value) if name in found else value
    return found


def body_modes(request: Any) -> tuple[int, int]:
    """Return how bodies of the request and of the response are sent: as the first message says.

    One that does not say so comes from a gateway older than that field, or that is no Envoy: then as the protocol asks.
    """
    if not request.HasField("protocol_config"):
        return FULL_DUPLEX, FULL_DUPLEX
    return request.protocol_config.request_body_mode, request.protocol_config.response_body_mode


def subset_of(request: Any) -> frozenset[str] | None:
    """Return the endpoints to which the gateway limits a pick, as `ip:port` or `ip`; None where it does not."""
    fields = _fields(request, SUBSET_NAMESPACE)
    if fields is None or SUBSET not in fields:
        return None
    value = fields[SUBSET]
    texts = (
        [value.string_value] if value.HasField("string_value") else [v.string_value for v in value.list_value.values]
    )
    named = (part.strip() for text in texts[:SUBSET_MAX] for part in text.split(","))
    return frozenset(name for name in named if name)


def served_by(request: Any) -> str | None:
    """Return which endpoint has answered, as `ip:port`; None where the gateway does not say it."""
    fields = _fields(request, NAMESPACE)
    return None if fields is None or SERVED not in fields else fields[SERVED].string_value or None


def _fields(request: Any, namespace: str) -> Any:
    metadata = request.metadata_context.filter_metadata
    return metadata[namespace].fields if namespace in metadata else None


# Answers, as they are sent: to make and serialize objects of protobuf takes three times as long as these few bytes.


def request_headers(headers: Headers = (), *, destination: str | None = None, removed: Iterable[str] = ()) -> bytes:
    """Return the answer to a request's headers. destination: where the request goes, if this says so."""
    return _field(_REQUEST_HEADERS, _response(headers, destination, removed)) + _metadata(destination)


def request_body(headers: Headers = (), *, destination: str | None = None, removed: Iterable[str] = ()) -> bytes:
    """Return the answer to a request's body that came as a whole, and goes on as it is."""
    return _field(_REQUEST_BODY, _response(headers, destination, removed)) + _metadata(destination)


def response_headers(headers: Headers = ()) -> bytes:
    return _field(_RESPONSE_HEADERS, _response(headers, None, ()))


def streamed_request(body: bytes, *, end: bool) -> bytes:
    """Return a piece of a request's body as it goes on."""
    return _streamed(_REQUEST_BODY, body, end)


def streamed_response(body: bytes, *, end: bool) -> bytes:
    """Return a piece of a response's body as it goes on."""
    return _streamed(_RESPONSE_BODY, body, end)


def response_body() -> bytes:
    """Return the answer to a piece of a response's body that goes on as it is."""
    return _field(_RESPONSE_BODY, b"")


def request_trailers() -> bytes:
    return _field(_REQUEST_TRAILERS, b"")


def response_trailers() -> bytes:
    return _field(_RESPONSE_TRAILERS, b"")


def immediate(status: int, headers: Headers, body: bytes, details: str) -> bytes:
    """Return an answer for the client, instead of a worker's."""
    parts = _field(1, b"\x08" + _number(status)), _field(2, _set(headers)), _field(3, body), _field(5, details.encode())
    return _field(_IMMEDIATE, b"".join(parts))


_REQUEST_HEADERS, _RESPONSE_HEADERS, _REQUEST_BODY, _RESPONSE_BODY, _REQUEST_TRAILERS, _RESPONSE_TRAILERS = range(1, 7)
_IMMEDIATE, _DYNAMIC_METADATA = 7, 8
"""Fields of `ProcessingResponse`. The other numbers are of Envoy's files as well: a test reads all answers by these."""

_CLEAR_ROUTE_CACHE = b"\x28\x01"
_END_OF_STREAM = b"\x10\x01"
_BYTE, _TWO_BYTES = 0x80, 0x4000
_SMALL = [bytes([number]) for number in range(_BYTE)]


def _number(value: int) -> bytes:
    """Return a number as protobuf has it: seven bits a byte, the lowest first."""
    if value < _BYTE:
        return _SMALL[value]
    if value < _TWO_BYTES:
        return bytes((value & (_BYTE - 1) | _BYTE, value >> 7))
    found = bytearray()
    while value >= _BYTE:
        found.append(value & (_BYTE - 1) | _BYTE)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(number: int, value: bytes) -> bytes:
    """Return a field below 16 that has a length: a message, text or bytes."""
    return b"%b%b%b" % (_SMALL[number << 3 | 2], _number(len(value)), value)


def _response(headers: Headers, destination: str | None, removed: Iterable[str]) -> bytes:
    """Return a message that holds nothing but a `CommonResponse`."""
    if destination is not None:
        headers = [(DESTINATION, destination.encode()), *headers]
    mutation = _set(headers) + b"".join(_field(2, name.encode()) for name in removed)
    return _field(1, _field(2, mutation) + (_CLEAR_ROUTE_CACHE if destination is not None else b""))


def _set(headers: Headers) -> bytes:
    """Return a `HeaderMutation` that sets these."""
    return b"".join([_option(key, value) for key, value in headers])


def _option(key: str, value: bytes) -> bytes:
    """Return a `HeaderValueOption` as a field of its mutation."""
    name, size = _name(key), len(value)
    inner = len(name) + 2 + size
    if inner + 4 < _BYTE:  # Nearly all are: then each length takes one byte.
        return b"\x0a%c\x0a%c%b\x1a%c%b\x18\x02" % (inner + 4, inner, name, size, value)
    return _field(1, _field(1, name + _field(3, value)) + b"\x18\x02")  # OVERWRITE_IF_EXISTS_OR_ADD


@lru_cache(NAMES_MAX)
def _name(key: str) -> bytes:
    return _field(1, key.encode())


def _metadata(destination: str | None) -> bytes:
    """Return the field that says where a request goes a second time."""
    if destination is None:
        return b""
    inner = _entry(DESTINATION, _field(3, destination.encode()))
    return _field(_DYNAMIC_METADATA, _entry(NAMESPACE, _field(5, inner)))


def _entry(key: str, value: bytes) -> bytes:
    """Return a `Struct` with one field. value: a `Value`."""
    return _field(1, _field(1, key.encode()) + _field(2, value))


def _streamed(kind: int, body: bytes, end: bool) -> bytes:
    """Return a body's response that holds nothing but a `StreamedBodyResponse`. The body is copied once."""
    last = _END_OF_STREAM if end else b""
    head = b"\x0a" + _number(len(body))
    size = len(head) + len(body) + len(last)
    for tag in (b"\x1a", b"\x1a", b"\x0a", _SMALL[kind << 3 | 2]):  # In body_mutation, in response, in the answer.
        outer = tag + _number(size)
        head, size = outer + head, size + len(outer)
    return b"".join((head, body, last))
