"""Bedrock's Converse, as its public reference describes it: signatures checked, cache points counted, a prompt cache.

SigV4 is computed here anew, by AWS's description of it. A token is four bytes.
"""

from __future__ import annotations

import hmac
import json
from binascii import crc32
from hashlib import sha256
from struct import pack
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tests.support.providers.anthropic_api import Refused
from tests.support.providers.server import Asked, Peer

POINTS_MAX = 4
FIELDS = {"messages", "system", "toolConfig", "inferenceConfig", "additionalModelRequestFields", "guardrailConfig"}
BLOCKS = {"text", "document", "image", "toolUse", "toolResult", "reasoningContent", "cachePoint", "toolSpec"}
POINT = {"type": "default"}


class Credentials(NamedTuple):
    """What requests are signed with."""

    access_key: str
    secret_key: str
    region: str


def signature_of(asked: Asked, credentials: Credentials, signed_headers: str, stamp: str) -> str:
    """Return the signature that a request has to have."""
    path, _, query = asked.target.partition("?")
    headers = "".join(f"{name}:{asked.headers[name].strip()}\n" for name in signed_headers.split(";"))
    payload = sha256(asked.body).hexdigest()
    canonical = "\n".join([asked.method, quote(path, safe="/-_.~"), query, headers, signed_headers, payload])
    scope = f"{stamp[:8]}/{credentials.region}/bedrock/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def aws_message(kind: str, payload: dict[str, Any]) -> bytes:
    """Return one message of AWS's event stream."""
    headers = b""
    for name, value in ((":event-type", kind), (":content-type", "application/json"), (":message-type", "event")):
        headers += pack(">B", len(name)) + name.encode() + b"\x07" + pack(">H", len(value)) + value.encode()
    data = json.dumps(payload).encode()
    prelude = pack(">II", 16 + len(headers) + len(data), len(headers))
    whole = prelude + pack(">I", crc32(prelude)) + headers + data
    return whole + pack(">I", crc32(whole))


class BedrockApi:
    """A script of `ProviderServer`. key: the key of Bedrock that is right."""

    def __init__(self, credentials: Credentials, key: str = "bedrock-key") -> None:
        self._credentials, self._key = credentials, key
        self._kept: set[bytes] = set()

    async def __call__(self, peer: Peer, asked: Asked) -> None:
        try:
            self._check_identity(asked)
            _, _, model, verb = asked.target.split("/")
            usage = self._usage(unquote(model), json.loads(asked.body))
        except Refused as exc:
            await peer.answer(exc.status, json.dumps({"message": exc.message}).encode())
            return
        if verb == "converse-stream":
            head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ntransfer-encoding: chunked"
            await peer.send(f"{head}\r\n\r\n".encode())
            await peer.chunk(aws_message("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hello"}}))
            await peer.chunk(aws_message("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}))
            await peer.end()
        else:
            message = {"role": "assistant", "content": [{"text": "Hello there"}]}
            said = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}
            await peer.answer(200, json.dumps(said).encode(), "x-amzn-requestid: 1")

    def _check_identity(self, asked: Asked) -> None:
        given = asked.headers.get("authorization", "")
        if given == f"Bearer {self._key}":
            return
        scheme, _, rest = given.partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            raise Refused(403, "Missing Authentication Token")
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        stamp = asked.headers["x-amz-date"]
        scope = f"{self._credentials.access_key}/{stamp[:8]}/{self._credentials.region}/bedrock/aws4_request"
        expected = signature_of(asked, self._credentials, parts["SignedHeaders"], stamp)
        if parts["Credential"] != scope or parts["Signature"] != expected or "host" not in parts["SignedHeaders"]:
            raise Refused(403, "The request signature we calculated does not match the signature you provided.")

    def _usage(self, model: str, body: dict[str, Any]) -> dict[str, int]:
        if body.keys() - FIELDS:
            raise Refused(400, f"extraneous key {min(body.keys() - FIELDS)} is not permitted")
        tools = body.get("toolConfig", {}).get("tools", [])
        blocks = [*tools, *body.get("system", [])]
        for message in body["messages"]:
            blocks += [{"role": message["role"]}, *message["content"]]
        points = [block for block in blocks if "cachePoint" in block]
        if len(points) > POINTS_MAX or any(point != {"cachePoint": POINT} for point in points):
            raise Refused(400, "too many cache points, or wrong ones")
        known = "anthropic.claude" in model or "amazon.nova" in model
        if points and (not known or ("nova" in model and any("cachePoint" in tool for tool in tools))):
            raise Refused(403, "You invoked an unsupported model or your request did not allow prompt caching.")
        tokens = read = written = 0
        digest = sha256(model.encode())
        for block in blocks:
            if "cachePoint" in block:
                read, written = (tokens, 0) if digest.digest() in self._kept else (read, tokens - read)
                self._kept.add(digest.digest())
                continue
            if block.keys() - BLOCKS - {"role"}:
                raise Refused(400, f"unknown block {block.keys()}")
            data = json.dumps(block, sort_keys=True).encode()
            digest.update(data)
            tokens += len(data) // 4
        used = {"inputTokens": tokens - read - written, "outputTokens": 2, "totalTokens": tokens + 2}
        return used | {"cacheReadInputTokens": read, "cacheWriteInputTokens": written}
