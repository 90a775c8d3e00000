"""Signs requests to Bedrock with AWS credentials of the router's own environment: SigV4, by botocore's signer.

A client's own signature is for the router's address, and so for no other. Clients either send a key of Bedrock as
``Authorization: Bearer``, which passes through, or the router signs for them, where that is wanted (`bedrock_sign`).
"""

from __future__ import annotations

import re
from typing import Any, Final

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.providers.request_lines import host_of
from ghostcacher_router.types import Body, Endpoint

SERVICE: Final = "bedrock"
_HOST_REGION = re.compile(r"bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.")


class BedrockSigner:
    """Makes the header lines of a signature. Used by one thread: credentials may have to be fetched."""

    def __init__(self, endpoint: Endpoint, region: str | None) -> None:
        """region: None: as the endpoint's name says. Raises ConfigError without botocore, credentials or region."""
        try:
            from botocore.auth import SigV4Auth  # noqa: PLC0415 - an extra
            from botocore.awsrequest import AWSRequest  # noqa: PLC0415
            from botocore.session import Session  # noqa: PLC0415
        except ImportError:
            raise ConfigError(
                "bedrock_sign: expected botocore, which 'ghostcacher[bedrock]' brings; got none"
            ) from None
        named = _HOST_REGION.match(endpoint.host)
        session = Session()
        found = region or (named[1] if named else None) or session.get_config_variable("region")
        if not found:
            raise ConfigError("bedrock_region: expected a region, since the URL of bedrock names none; got none")
        self._credentials: Any = session.get_credentials()
        if self._credentials is None:
            raise ConfigError("bedrock_sign: expected AWS credentials in the router's environment, got none")
        self._region = str(found)
        self._auth, self._request = SigV4Auth, AWSRequest

    def __repr__(self) -> str:
        return f"BedrockSigner({self._region})"

    def lines(self, endpoint: Endpoint, method: str, target: bytes, lines: list[bytes], body: Body) -> list[bytes]:
        """Return the header lines that sign a request. target: with the endpoint's path. lines: all others but Host."""
        data = body if isinstance(body, bytes) else body.join()
        headers = {"Host": host_of(endpoint)}
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "content-type":
                headers[name] = value.strip()
        url = f"https://{host_of(endpoint)}{target.decode('ascii')}"
        request = self._request(method=method, url=url, data=data, headers=headers)
        self._auth(self._credentials.get_frozen_credentials(), SERVICE, self._region).add_auth(request)
        signed = ("X-Amz-Date", "X-Amz-Security-Token", "Authorization")
        return [f"{name}: {request.headers[name]}".encode() for name in signed if name in request.headers]
