"""A gateway as strict as Envoy's ext_proc filter, over gRPC: what it is not allowed to be answered fails the test.

It sends what the filter sends in each body mode, in that order, and takes answers as the filter's state machine does
(`ProcessorState` in Envoy): one for each message, of the message's own kind, except in full duplex, where the server
holds pieces of a body as long as it likes, and answers with pieces of its own of which one is the last. Everything else
is what Envoy calls a spurious message. Its messages are those of Envoy's published protos.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2 as core
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub

NONE, STREAMED, BUFFERED = ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.BUFFERED
FULL_DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED

ANSWER_S_MAX = 60.0
PIECE_BYTES_MAX = 64 << 10
"""Some gateways take no larger piece of a body."""
DESTINATION = "x-gateway-destination-endpoint"
OVERWRITE = core.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
KEPT = ("host", ":authority", ":scheme", ":method")
"""Headers that Envoy lets nobody change."""


class Spurious(AssertionError):
    """An answer that Envoy would end the stream for."""


def header_map(headers: dict[str, str]) -> Any:
    return core.HeaderMap(headers=[core.HeaderValue(key=key, raw_value=text.encode()) for key, text in headers.items()])


class StrictExchange:
    """One HTTP request and its stream. What the picker has said of it so far:

    headers: of the request, as they go on. destination: endpoints in order. body: as it goes on. immediate: status,
    headers and body of an answer of the picker's; None without one. body_changes: whether the body may be another one.
    """

    def __init__(self, call: Any, request_mode: int, response_mode: int, config: Any) -> None:
        self._call, self._request_mode, self._response_mode, self._config = call, request_mode, response_mode, config
        self.headers: dict[str, str] = {}
        self.destination: list[str] = []
        self.body = b""
        self.body_changes = False
        self.immediate: tuple[int, dict[str, str], bytes] | None = None

    # The request

    async def request(
        self, headers: dict[str, str], pieces: Sequence[bytes], subset: Any, *, end: bool = True, trailers: bool = False
    ) -> None:
        """Send a request, and take what is answered, until it goes on or is answered.

        pieces: of the body; none for a request without one. end: whether the last one is marked as such; without, what
        is answered to the rest is not waited for. trailers: whether trailers follow.
        """
        self.headers = dict(headers)
        first = pb.ProcessingRequest(
            request_headers=pb.HttpHeaders(headers=header_map(headers), end_of_stream=not pieces),
            metadata_context=_subset(subset),
            protocol_config=self._config,
        )
        await self._call.write(first)
        if not pieces or self._request_mode != FULL_DUPLEX:
            if not await self._headers_answered():
                return
            if not pieces or self._request_mode == NONE:
                return
        if self._request_mode == FULL_DUPLEX:
            await self._send_duplex(pieces, end=end, trailers=trailers)
        elif self._request_mode == BUFFERED:
            await self._send(b"".join(pieces), end=not trailers)
            await self._whole_body_answered(b"".join(pieces))
        else:
            for place, piece in enumerate(pieces):
                await self._send(piece, end=place == len(pieces) - 1)
                await self._whole_body_answered(piece)

    async def _send(self, body: bytes, *, end: bool) -> None:
        await self._call.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end)))

    async def _send_duplex(self, pieces: Sequence[bytes], *, end: bool, trailers: bool) -> None:
        for place, piece in enumerate(pieces):
            await self._send(piece, end=end and not trailers and place == len(pieces) - 1)
        if trailers:
            message = pb.HttpTrailers(trailers=header_map({"x-checksum": "1"}))
            await self._call.write(pb.ProcessingRequest(request_trailers=message))
        if end and await self._headers_answered():
            await self.take_body("request_body", trailers="request_trailers" if trailers else None)
            assert self.body == b"".join(pieces) or self.body_changes, "the body goes on as it came"

    async def take_body(self, kind: str, *, trailers: str | None) -> bytes:
        """Take the pieces of a body in full duplex until its end, and the answer to its trailers."""
        taken = b""
        while True:
            answer = await self._answer()
            found = answer.WhichOneof("response")
            if trailers is not None and found == trailers:
                break
            if found != kind:
                raise Spurious(f"expected {kind}, got {found}")
            piece = _streamed(getattr(answer, kind).response)
            taken += piece.body
            if piece.end_of_stream:
                if trailers is not None:
                    raise Spurious("the end of a body behind which trailers come")
                break
        if kind == "request_body":
            self.body += taken
        return taken

    async def _headers_answered(self) -> bool:
        """Take the answer to the request's headers; False for one that is the client's."""
        answer = await self._answer()
        if answer.WhichOneof("response") == "immediate_response":
            self._take_immediate(answer.immediate_response)
            await self.ended()
            return False
        if answer.WhichOneof("response") != "request_headers":
            raise Spurious(f"expected request_headers, got {answer.WhichOneof('response')}")
        self._apply(answer, answer.request_headers.response)
        return True

    async def _whole_body_answered(self, body: bytes) -> None:
        answer = await self._answer()
        if answer.WhichOneof("response") == "immediate_response":
            self._take_immediate(answer.immediate_response)
            await self.ended()
            return
        if answer.WhichOneof("response") != "request_body":
            raise Spurious(f"expected request_body, got {answer.WhichOneof('response')}")
        common = answer.request_body.response
        if common.HasField("body_mutation"):
            raise Spurious(f"a body's mutation that is not asked for: {common.body_mutation}")
        if self._request_mode != BUFFERED and common.header_mutation.set_headers:
            raise Spurious("headers are changed after they went on")
        self._apply(answer, common)
        self.body += body

    # The response

    async def respond(
        self,
        pieces: Sequence[bytes] = (b"data: 1\n\n",),
        *,
        status: int = 200,
        content_type: str = "text/event-stream",
        served: str | None = None,
        end: bool = True,
        trailers: bool = False,
    ) -> dict[str, str]:
        """Tell of a response, and return its headers as they go on. end: whether it ends with these pieces."""
        headers = {":status": str(status), "content-type": content_type}
        await self._call.write(
            pb.ProcessingRequest(
                response_headers=pb.HttpHeaders(headers=header_map(headers), end_of_stream=not pieces and end),
                metadata_context=_metadata("envoy.lb", {f"{DESTINATION}-served": served} if served else {}),
            )
        )
        answer = await self._answer()
        if answer.WhichOneof("response") != "response_headers":
            raise Spurious(f"expected response_headers, got {answer.WhichOneof('response')}")
        headers |= _changes(answer.response_headers.response)
        if self._response_mode == NONE:
            return headers
        for place, piece in enumerate(pieces):
            last = end and not trailers and place == len(pieces) - 1
            await self._call.write(
                pb.ProcessingRequest(response_body=pb.HttpBody(body=piece, end_of_stream=last)),
            )
            answer = await self._answer()
            if answer.WhichOneof("response") != "response_body":
                raise Spurious(f"expected response_body, got {answer.WhichOneof('response')}")
            common = answer.response_body.response
            if self._response_mode == FULL_DUPLEX:
                passed = _streamed(common)
                assert (passed.body, passed.end_of_stream) == (piece, last)
            elif common.HasField("body_mutation"):
                raise Spurious("a body's mutation that is not asked for")
        if trailers:
            await self._call.write(pb.ProcessingRequest(response_trailers=pb.HttpTrailers(trailers=header_map({}))))
            answer = await self._answer()
            if answer.WhichOneof("response") != "response_trailers":
                raise Spurious(f"expected response_trailers, got {answer.WhichOneof('response')}")
        return headers

    # The stream

    async def ended(self) -> None:
        """Close this side; the picker has nothing more to say, and ends the stream without an error."""
        await self._call.done_writing()
        async with asyncio.timeout(ANSWER_S_MAX):
            if (more := await self._call.read()) is not grpc.aio.EOF:
                raise Spurious(f"expected the stream's end, got {more}")
            assert await self._call.code() is grpc.StatusCode.OK, await self._call.details()

    def abort(self) -> None:
        """Cancel the stream, as Envoy does when the client has left."""
        self._call.cancel()

    async def _answer(self) -> Any:
        async with asyncio.timeout(ANSWER_S_MAX):
            answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise Spurious(f"the stream ended: {await self._call.code()} {await self._call.details()}")
        return answer

    def _apply(self, answer: Any, common: Any) -> None:
        """Change the request's headers, and note where it goes: header and metadata must say the same."""
        for name in common.header_mutation.remove_headers:
            self.headers.pop(name, None)
        changes = _changes(common)
        self.headers |= changes
        metadata = answer.dynamic_metadata.fields
        assert set(metadata) <= {"envoy.lb"}, metadata
        named = metadata["envoy.lb"].struct_value.fields[DESTINATION].string_value if metadata else None
        assert changes.get(DESTINATION) == named
        if named is not None:
            assert not self.destination, "a destination is named once"
            assert common.clear_route_cache
            self.destination = named.split(",")
            assert all(_is_endpoint(one) for one in self.destination), named

    def _take_immediate(self, message: Any) -> None:
        assert message.status.code >= 400
        changed = {each.header.key: each.header.raw_value.decode() for each in message.headers.set_headers}
        self.immediate = (message.status.code, changed, message.body)


class StrictGateway:
    """A gateway that asks the picker at a port of loopback."""

    def __init__(self, channel: Any, *, request_mode: int, response_mode: int, says_modes: bool) -> None:
        self._stub = ExternalProcessorStub(channel)
        self._modes = request_mode, response_mode
        self._config = None
        if says_modes:
            self._config = pb.ProtocolConfiguration(request_body_mode=request_mode, response_body_mode=response_mode)

    def opened(self) -> Any:
        """Open a stream and write nothing: a write that meets the end of a refused stream hides why it was refused."""
        return self._stub.Process()

    async def ask(
        self,
        *pieces: bytes,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
        subset: Any = None,
        end: bool = True,
        trailers: bool = False,
        body_changes: bool = False,
    ) -> StrictExchange:
        """Have a worker picked for a request; its body in pieces. subset: as the gateway's metadata has it."""
        exchange = StrictExchange(self.opened(), *self._modes, self._config)
        exchange.body_changes = body_changes
        own = {":method": method, ":path": path, ":authority": "models.example", ":scheme": "http"}
        await exchange.request(own | (headers or {}), pieces, subset, end=end, trailers=trailers)
        return exchange


@asynccontextmanager
async def gateway(
    port: int, *, request_mode: int = FULL_DUPLEX, response_mode: int = FULL_DUPLEX, says_modes: bool = True
) -> AsyncIterator[StrictGateway]:
    """Connect a gateway. says_modes: whether it tells how it sends bodies, as Envoy does."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield StrictGateway(channel, request_mode=request_mode, response_mode=response_mode, says_modes=says_modes)


def _streamed(common: Any) -> Any:
    if not common.body_mutation.HasField("streamed_response"):
        raise Spurious("expected a streamed_response in full duplex")
    if common.header_mutation.set_headers:
        raise Spurious("headers are changed with a piece of a body")
    piece = common.body_mutation.streamed_response
    assert len(piece.body) <= PIECE_BYTES_MAX, len(piece.body)
    return piece


def _changes(common: Any) -> dict[str, str]:
    """Return the headers that an answer sets, as Envoy takes them: by name in lower case, with the raw value."""
    changes = {}
    for option in common.header_mutation.set_headers:
        name = option.header.key
        assert name == name.lower(), name
        assert name not in KEPT, name
        assert not name.startswith((":", "x-envoy")), name
        assert not option.header.value, f"{name}: the value goes into raw_value"
        assert option.append_action == OVERWRITE, f"{name}: a value of the client's would stay beside it"
        changes[name] = option.header.raw_value.decode()
    return changes


def _metadata(namespace: str, values: dict[str, Any]) -> Any:
    metadata = core.Metadata()
    if values:
        metadata.filter_metadata[namespace].update(values)
    return metadata


def _subset(subset: Any) -> Any:
    values = {} if subset is None else {f"{DESTINATION}-subset": subset}
    return _metadata("envoy.lb.subset_hint", values)


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and " " not in text
