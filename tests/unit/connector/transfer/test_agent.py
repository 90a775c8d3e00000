"""What is checked before NIXL or UCX sees anything: the choice of transports, and the envelope of the metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError, ProtocolError
from ghostcacher_connector.transfer.nixl.agent import choose_ucx_tls, unwrap_metadata, wrap_metadata


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        (None, None, "^tcp"),
        (None, "all", "^tcp"),
        (None, "", "^tcp"),
        (None, "rc,sm,self", "rc,sm,self"),
        (None, "^ud", "^ud,tcp"),
        (None, "^tcp,ud", "^tcp,ud"),
        ("sm", "tcp", "sm"),
    ],
)
def test_ucx_never_gets_tcp(configured: str | None, environment: str | None, expected: str) -> None:
    """Whatever is set, the result excludes TCP; the setting wins over the environment."""
    assert choose_ucx_tls(configured, environment) == expected


@pytest.mark.parametrize(
    ("configured", "environment", "name"),
    [(None, "tcp", "environment variable UCX_TLS"), (None, "sm, tcp", "UCX_TLS"), ("tcp,sm", None, "ucx_tls")],
)
def test_ucx_tls_that_names_tcp_is_refused_by_name(configured: str | None, environment: str | None, name: str) -> None:
    """TCP asked for is an error that names the setting and the way over plain networks."""
    with pytest.raises(ConfigError, match=name) as caught:
        choose_ucx_tls(configured, environment)
    assert "relay_listen" in str(caught.value)


@given(st.binary(max_size=300))
def test_metadata_survives_its_envelope(payload: bytes) -> None:
    """What goes in comes out."""
    assert unwrap_metadata(wrap_metadata(payload, "1.5.1", "a"), "1.5.1", "a") == payload


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_flipped_bit_or_cut_is_found(payload: bytes, data: st.DataObject) -> None:
    """UCX aborts the process on a damaged address, so no damage may pass."""
    envelope = bytearray(wrap_metadata(payload, "1.5.1", "a"))
    place = data.draw(st.integers(0, len(envelope) - 1))
    cut = data.draw(st.booleans())
    damaged = (
        bytes(envelope[:place])
        if cut
        else bytes(envelope[:place]) + bytes([envelope[place] ^ 1]) + bytes(envelope[place + 1 :])
    )
    with pytest.raises(ProtocolError):
        unwrap_metadata(damaged, "1.5.1", "a")


@given(st.binary(max_size=400))
def test_random_bytes_are_no_metadata(garbage: bytes) -> None:
    """Garbage is refused; the library never sees it."""
    with pytest.raises(ProtocolError):
        unwrap_metadata(garbage, "1.5.1", "a")


def test_metadata_of_another_nixl_version_is_refused() -> None:
    """Formats differ between versions, and nothing in them says so."""
    with pytest.raises(ProtocolError, match=r"expected NIXL 1\.6\.0, found 1\.5\.1"):
        unwrap_metadata(wrap_metadata(b"x", "1.5.1", "a"), "1.6.0", "a")


def test_metadata_of_another_agent_is_refused() -> None:
    """It is not even loaded, since that would disturb the connection to the agent that it belongs to."""
    with pytest.raises(ProtocolError, match="expected b, found a"):
        unwrap_metadata(wrap_metadata(b"x", "1.5.1", "a"), "1.5.1", "b")
