"""What a relay process is told at its start, over a pipe: the token must not be seen in arguments or environment."""

from __future__ import annotations

import msgspec

from ghostcacher_connector.core.types import RankEndpoint


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """endpoint: the rank to serve. listen: "host:port". token: shared secret, may be empty on loopback only.

    nixl_package: where the parent found NIXL; looking for it would load torch.
    """

    endpoint: RankEndpoint
    listen: str
    token: str
    ucx_tls: str | None
    nixl_package: str

    def __repr__(self) -> str:
        return f"RelayConfig({self.endpoint.agent_name}, listen={self.listen}, token={'set' if self.token else 'none'})"
