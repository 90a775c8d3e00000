"""Fixtures of the connector's integration tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Options of NixlTransport under which UCX emulates READs: they need the owner's CPU, and hang when it stops.

    So does an RDMA device that cannot READ by itself. Here it is shared memory which sees only what was made for
    sharing; the emulation, which is off on hosts without a network, is forced on in this process and the owner's.
    """
    monkeypatch.setenv("UCX_PROTO_EMULATION_ENABLE", "y")
    return {"ucx_tls": "posix,sysv,self"}
