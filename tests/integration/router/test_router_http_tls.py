"""The HTTP proxy with TLS on both sides."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.types import Endpoint, Outcome
from tests.support.mock_engine import MockEngine
from tests.support.proxy_rig import Clock, FirstOf, LocalPages, Tally, on_loop, parse, post, proxy_rig


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True, timeout=60)
    return certificate, key


class TlsEngine(MockEngine):
    """Says that it listens with TLS."""

    @property
    def endpoint(self) -> Endpoint:
        return super().endpoint._replace(tls=True)


@pytest.mark.parametrize("signed", [True, False])
@on_loop
async def test_answer_that_ends_with_a_tls_connection_is_whole_only_if_the_worker_says_so(
    certificate: tuple[Path, Path], signed: bool
) -> None:
    """Whoever is in between can close the connection beneath it: the client sees a reset."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(*certificate)
    loop = asyncio.get_running_loop()

    def serve() -> None:
        plain, _ = listener.accept()
        with listening.wrap_socket(plain, server_side=True) as worker:
            while not worker.recv(1 << 16).endswith(b"{}"):
                pass
            worker.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
            if signed:
                worker.unwrap()
            else:
                worker.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = loop.run_in_executor(None, serve)
        async with proxy_rig(TlsEngine("w0")) as rig:
            rig.engine.port = listener.getsockname()[1]
            rig.state.pools._tls = ssl.create_default_context(cafile=str(certificate[0]))
            client = await rig.client()
            client.send(post(b"{}"))
            await client.head()
            assert await client.reader.readexactly(3) == b"abc"
            assert await client.ends_with_reset() is not signed
            assert rig.placements[0].outcome is (Outcome.DONE if signed else Outcome.FAILED)
        await serving


@pytest.mark.parametrize("known", [True, False])
@on_loop
async def test_worker_with_tls_is_verified(certificate: tuple[Path, Path], known: bool) -> None:
    """One whose certificate is not known has refused; clients get TLS as well."""
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    engine = TlsEngine("w0")
    await engine.start(listening)
    dispatcher = FirstOf([engine])
    proxy = HttpProxy(
        dispatcher,
        LocalPages(),
        parse,
        Tally(),
        router="t",
        clock=Clock(),
        worker_tls=trusting if known else ssl.create_default_context(),
    )
    port = await proxy.start("127.0.0.1", 0, tls=listening)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    for body in (b"first", b"x" * 1_000_000):
        writer.write(post(body))
        status = (await reader.readuntil(b"\r\n\r\n"))[:12]
        if known:
            assert (status, await reader.readexactly(len(body))) == (b"HTTP/1.1 200", body)
        else:
            assert status == b"HTTP/1.1 502"
            assert dispatcher.placements[0].outcome is Outcome.REFUSED
            break
    writer.close()
    await proxy.stop(0.0)
    await engine.stop()
