"""The relay against strangers: wrong tokens, garbage, hangs and too many of them; and across network namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from ghostcacher_connector.core.addresses import is_unspecified
from ghostcacher_connector.core.errors import ConfigError, ProtocolError
from ghostcacher_connector.core.types import MissReason, RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, PullResult
from ghostcacher_connector.transfer.nixl.agent import nixl_package
from ghostcacher_connector.transfer.relay.process import RelayConfig, RelayProcess
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.transfer.relay.server import CONNECTIONS_MAX
from ghostcacher_connector.transfer.relay.wire import (
    FRAME_BYTES_MAX,
    Ask,
    Channel,
    Failure,
    Hello,
    Login,
    Welcome,
    client_handshake,
    parse_address,
)
from tests.support.index_parts import wait_until
from tests.support.kv_memory import KvMemory
from tests.support.open_files import many_files_open
from tests.support.owner_client import OwnerProcess

TOKEN = "correct horse"


@pytest.fixture(scope="module")
def owner() -> Iterator[OwnerProcess]:
    with OwnerProcess({"relay": {"listen": "127.0.0.1:0", "token": TOKEN}}) as owner:
        owner.call("overwrite", range(64), [0] * 64)
        yield owner


def pull(endpoint: RankEndpoint, token: str | None, seconds: float = 60.0) -> tuple[PullResult, KvMemory]:
    memory = KvMemory()
    transport = RelayTransport(memory.rank, token=token)
    slots = np.arange(8, dtype=np.int64)
    result = transport.pull(
        PullRequest(endpoint, slots, slots, np.zeros(8, dtype=np.uint64), time.monotonic() + seconds)
    )
    transport.close()
    return result, memory


def dial(endpoint: RankEndpoint) -> Channel:
    channel = Channel(socket.create_connection(parse_address(endpoint.relay or ""), timeout=5))
    channel.deadline = time.monotonic() + 60
    return channel


def test_reader_with_the_token_is_served(owner: OwnerProcess) -> None:
    """The plain case, so that the refusals below mean something."""
    results = []

    def served() -> bool:
        results.append(pull(owner.endpoint, TOKEN))
        return results[-1][0].outcome is PullOutcome.DONE

    # On a crowded machine connecting may take longer than its bound: it is tried again.
    wait_until(served)
    _, memory = results[-1]
    assert memory.holds(np.arange(8), np.arange(8), np.zeros(8, dtype=np.uint64)).all()


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + " "])
def test_reader_without_the_token_gets_nothing(owner: OwnerProcess, token: str | None) -> None:
    """No byte of KV is sent to who does not prove that it knows the token."""
    result, memory = pull(owner.endpoint, token)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)
    assert not any(rows.any() for rows in memory.rows)


def test_relay_without_the_token_is_not_believed(owner: OwnerProcess) -> None:
    """Authentication is mutual: an impostor that lets everybody in is found out."""
    listener = socket.create_server(("127.0.0.1", 0))

    def impostor() -> None:
        channel = Channel(listener.accept()[0])
        channel.deadline = time.monotonic() + 60
        channel.send(Hello(1, bytes(32)))
        login = channel.receive()
        assert isinstance(login, Login)
        channel.send(Welcome(login.proof, (4096, 4096, 4096)))  # the best proof it has: the reader's own
        with contextlib.suppress(ProtocolError, OSError):
            channel.receive()
        channel.close()

    thread = threading.Thread(target=impostor)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    result, memory = pull(msgspec.structs.replace(owner.endpoint, relay=address), TOKEN)
    thread.join(60)
    listener.close()
    assert "does not know the token" in result.detail
    assert result.outcome is PullOutcome.FAILED
    assert not any(rows.any() for rows in memory.rows)


def test_proof_cannot_be_replayed_or_reflected(owner: OwnerProcess) -> None:
    """A recorded Login is worthless for another nonce."""
    first = dial(owner.endpoint)
    hello = first.receive()
    assert isinstance(hello, Hello)
    second = dial(owner.endpoint)
    other = second.receive()
    assert isinstance(other, Hello)
    assert hello.nonce != other.nonce
    second.send(Login(bytes(32), owner.endpoint.agent_name, other.nonce))
    with pytest.raises((ConnectionError, OSError)):
        second.receive()
    first.close()
    second.close()


def test_reader_of_another_incarnation_is_refused(owner: OwnerProcess) -> None:
    """A relay that took over the port of an earlier one says that it is not the one asked for."""
    stranger = msgspec.structs.replace(owner.endpoint, agent_name="somebody-else")
    result, _ = pull(stranger, TOKEN)
    assert result.reason is MissReason.PEER_UNREACHABLE
    assert "this relay serves" in result.detail


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", (FRAME_BYTES_MAX + 1).to_bytes(4, "little"), b"\x00" * 64, b"\x04\x00\x00\x00\x93abc"],
)
def test_garbage_ends_the_connection_and_nothing_else(owner: OwnerProcess, garbage: bytes) -> None:
    """Whatever a stranger sends, the next reader is served."""
    with socket.create_connection(parse_address(owner.endpoint.relay or ""), timeout=5) as sock:
        sock.settimeout(20)
        sock.sendall(garbage)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
    wait_until(lambda: pull(owner.endpoint, TOKEN)[0].outcome is PullOutcome.DONE)


@pytest.mark.parametrize("slots", [[64], [-1], [1 << 62], list(range(64)) * 2000])
def test_slots_out_of_range_are_refused_by_the_relay_itself(owner: OwnerProcess, slots: list[int]) -> None:
    """The relay does not rely on what readers check: it never READs outside the rank's slots, nor without bound."""
    channel = dial(owner.endpoint)
    client_handshake(channel, TOKEN, owner.endpoint.agent_name)
    try:
        channel.send(Ask(np.array(slots, dtype="<i8").tobytes(), 5000))
        answer = channel.receive()
        assert isinstance(answer, Failure)
        assert answer.reason is MissReason.MALFORMED_ENTRY
    except ConnectionError:
        assert len(slots) > 64  # the frame was too long to be read at all
    finally:
        channel.close()
    wait_until(lambda: pull(owner.endpoint, TOKEN)[0].outcome is PullOutcome.DONE)


def test_crowd_of_silent_connections_does_not_shut_readers_out_for_long(owner: OwnerProcess) -> None:
    """Connections are bounded, and those that do not log in are dropped soon."""
    crowd = [socket.create_connection(parse_address(owner.endpoint.relay or ""), timeout=5) for _ in range(80)]
    until = time.monotonic() + 60
    while pull(owner.endpoint, TOKEN, 2.0)[0].outcome is not PullOutcome.DONE:
        assert time.monotonic() < until
    for sock in crowd:
        sock.close()


def test_listener_beyond_loopback_needs_a_token(owner: OwnerProcess) -> None:
    """An open relay on the network is a configuration error that names both settings."""
    with pytest.raises(ConfigError, match=r"relay_listen.*relay_token"):
        RelayProcess(owner.endpoint, listen="0.0.0.0:0")


def test_port_that_is_taken_is_named_and_the_relay_ends_in_order(owner: OwnerProcess) -> None:
    """The error names setting and port; the process that could not listen neither hangs nor aborts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"relay_listen: expected a free port, .*{listen}.*already in use"):
            RelayProcess(owner.endpoint, listen=listen, token=TOKEN).start()
        config = RelayConfig(
            endpoint=owner.endpoint, listen=listen, token=TOKEN, ucx_tls=None, nixl_package=nixl_package()
        )
        body = msgspec.msgpack.encode(config)
        command = [sys.executable, "-m", "ghostcacher_connector.transfer.relay"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            # The input stays open, as a parent's does: a relay that waits for its end is waiting when it exits.
            process.stdin.write(len(body).to_bytes(4, "little") + body)
            process.stdin.flush()
            assert process.wait(120) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "0:0:0:0:0:0:0:0", "::", "0"])
def test_what_is_published_is_an_address_that_peers_can_reach(owner: OwnerProcess, host: str) -> None:
    """A relay may listen on every address of its machine; its readers are told one of them."""
    listen = f"[{host}]:7700" if ":" in host else f"{host}:7700"
    published, _ = parse_address(RelayProcess(owner.endpoint, listen=listen, token=TOKEN).address)
    assert not is_unspecified(published)


def test_relay_starts_where_more_files_are_open_than_select_can_take(owner: OwnerProcess) -> None:
    """An engine has 8 to 16 descriptors for each of its peers."""
    relay = RelayProcess(owner.endpoint, listen="127.0.0.1:0", token=TOKEN)
    with many_files_open(1100):
        try:
            relay.start()
        finally:
            relay.close()


def test_token_never_shows(owner: OwnerProcess) -> None:
    """Neither arguments, environment nor representations hold the token."""
    relay = RelayProcess(owner.endpoint, listen="127.0.0.1:0", token=TOKEN)
    config = RelayConfig(endpoint=owner.endpoint, listen="x:1", token=TOKEN, ucx_tls=None, nixl_package="nixl")
    assert TOKEN not in repr(relay) + repr(config) + repr(RelayTransport(KvMemory().rank, token=TOKEN))
    assert owner.relay_pid is not None
    for name in ("cmdline", "environ"):
        with open(f"/proc/{owner.relay_pid}/{name}", "rb") as shown:
            assert TOKEN.encode() not in shown.read()


def test_log_of_the_relay_can_be_json(owner: OwnerProcess, capfd: pytest.CaptureFixture[str]) -> None:
    """It writes where its engine does, in the form that the engine's own settings name."""
    relay = RelayProcess(owner.endpoint, listen="127.0.0.1:0", token=TOKEN, log_format="json")
    address = parse_address(relay.start())
    with contextlib.ExitStack() as readers:
        for _ in range(CONNECTIONS_MAX + 1):
            last = readers.enter_context(socket.create_connection(address, timeout=20))
        while last.recv(4096):  # it is closed once the refusal has been logged
            pass
    relay.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines] == [f"refused a reader: {CONNECTIONS_MAX} are connected"]
    assert lines[0]["level"] == "warning"


def test_relay_process_loads_neither_torch_nor_an_engine(owner: OwnerProcess) -> None:
    """It must start fast and stay small."""
    with open(f"/proc/{owner.relay_pid}/maps") as maps:
        loaded = maps.read()
    assert "libtorch" not in loaded  # an engine for CPUs has its children load the OpenMP library that torch brings
    assert "vllm" not in loaded


@pytest.mark.parametrize("relay", ["", "nonsense", "host:", ":1", "a" * 300 + ":1", "127.0.0.1:1", "127.0.0.1:99999"])
def test_poisoned_relay_address_fails_as_unreachable(owner: OwnerProcess, relay: str) -> None:
    """Whatever a record claims, the reader only learns that there is no way."""
    result, _ = pull(msgspec.structs.replace(owner.endpoint, relay=relay), TOKEN, 3.0)
    assert (result.outcome, result.reason) == (PullOutcome.FAILED, MissReason.PEER_UNREACHABLE)


READER = """
import base64, msgspec, numpy, sys, time
from ghostcacher_connector.transfer.base import PullRequest
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.core.types import RankEndpoint
from tests.support.kv_memory import KvMemory
peer = msgspec.msgpack.decode(base64.b64decode(sys.argv[1]), type=RankEndpoint)
memory = KvMemory()
slots = numpy.arange(8)
zeros = numpy.zeros(8, dtype=numpy.uint64)
request = PullRequest(peer, slots, slots, zeros, time.monotonic() + 60)
result = RelayTransport(memory.rank, token=sys.argv[2]).pull(request)
print(result.outcome.value, memory.holds(slots, slots, zeros).all(), result.detail)
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by one virtual cable: two hosts, as far as the network can tell."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = (f"gc-a-{os.getpid()}", f"gc-b-{os.getpid()}")
    cable = (f"gca{os.getpid()}", f"gcb{os.getpid()}")
    if subprocess.run(["ip", "netns", "add", names[0]], check=False, capture_output=True).returncode:
        pytest.skip("this kernel or container does not let us add network namespaces")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        subprocess.run(["ip", "link", "add", cable[0], "type", "veth", "peer", "name", cable[1]], check=True)
        for number, (name, end) in enumerate(zip(names, cable, strict=True), start=1):
            subprocess.run(["ip", "link", "set", end, "netns", name], check=True)
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"10.99.0.{number}/24", "dev", end], check=True)
            subprocess.run([*inside, "link", "set", end, "up"], check=True)
            subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_pull_across_network_namespaces_arrives_whole(namespaces: tuple[str, str]) -> None:
    """Two hosts that share only a network: the relay listens beyond loopback, with a token, and serves the other."""
    import base64

    options = {"relay": {"listen": "0.0.0.0:0", "token": TOKEN, "advertise_host": "10.99.0.1"}}
    with OwnerProcess(options, prefix=("ip", "netns", "exec", namespaces[0])) as owner:
        owner.call("overwrite", range(64), [0] * 64)
        packed = base64.b64encode(msgspec.msgpack.encode(owner.endpoint)).decode()
        command = ["ip", "netns", "exec", namespaces[1], sys.executable, "-c", READER, packed]
        good = subprocess.run([*command, TOKEN], capture_output=True, text=True, check=True, timeout=60)
        assert good.stdout.startswith("done True"), good
        bad = subprocess.run([*command, "guess"], capture_output=True, text=True, check=True, timeout=60)
        assert bad.stdout.startswith("failed False"), bad
