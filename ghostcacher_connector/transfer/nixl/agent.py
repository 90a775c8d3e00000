"""The NIXL agent: every call to the library, and every exception that it raises, passes through here.

What was measured and decided:
- UCX's emulated TCP can crash the *owner* when a reader dies and lets given-up READs land later. So UCX never gets to
  use TCP: over plain networks the relay is the way, which was faster, too.
- Without an RDMA device no UCX transport that is left can report a dead peer ("peer" error mode then fails to start);
  over shared memory the next READ of a dead peer fails by itself within 1 ms.
- UCX *aborts the process* on a damaged address in a peer's metadata. So metadata travels in an envelope with the NIXL
  version and a digest, both checked before the library sees a byte.
- UCX *emulates* what none of its transports can read: the owner's CPU must then help. Without a network no thread of it
  would, and the READ never ends. So emulation is off there, and such a READ fails at once (UCX 1.21 or later; an older
  one ignores the setting).
- CUDA IPC offers READs only where it finds NVLink, unless told so. Two engines on one GPU have none, and it works.
- NIXL remembers for each thread which worker of which agent it uses, by the agent's address, also when the agent is
  gone. So all agents of a process need equally many: else a thread may be sent to a worker that its agent has not.
- Thread mode RW with a worker a thread: two threads move 1.6 times what they move behind one lock. A READ over shared
  memory is copied inside `post`, with the GIL released.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from importlib import metadata as packages
from typing import Any

import msgspec

from ghostcacher_connector.core.errors import ConfigError, PeerUnreachable, ProtocolError, TransferError
from ghostcacher_connector.transfer.cuda import CudaDevice
from ghostcacher_connector.transfer.layout import Descriptors
from ghostcacher_connector.transfer.nixl.host import has_rdma

logger = logging.getLogger(__name__)

ENVELOPE_MAGIC = b"GCNX"
DIGEST_BYTES = 32
METADATA_BYTES_MAX = 1 << 20
_BACKEND = "UCX"
_EMULATING = "CUDA_IPC_ENABLE_GET_ZCOPY=on"
_ONE_SIDED = f"{_EMULATING},PROTO_EMULATION_ENABLE=n"
"""Settings of UCX; variables of the same names in its environment (UCX_...) win."""
_environment_lock = threading.Lock()


def choose_ucx_tls(configured: str | None, environment: str | None) -> str:
    """Return the value that UCX_TLS must have while the agent starts: it never lets UCX use TCP.

    configured: the setting ``ucx_tls``; it wins over the environment. Raises ConfigError when the choice names TCP.
    """
    choice = configured if configured is not None else environment
    if choice is None or choice.strip() in {"", "all"}:
        return "^tcp"
    names = [name.strip() for name in choice.strip().removeprefix("^").split(",")]
    if choice.strip().startswith("^"):
        return choice if "tcp" in names else f"{choice},tcp"
    if "tcp" in names or "all" in names:
        source = "ucx_tls" if configured is not None else "environment variable UCX_TLS"
        raise ConfigError(
            f"{source}={choice!r} lets UCX use TCP, where a dying reader can crash this worker: "
            "remove tcp from it; between hosts without RDMA, pulls go through the relay (relay_listen)"
        )
    return choice


def wrap_metadata(payload: bytes, version: str, name: str) -> bytes:
    """Put NIXL's metadata in an envelope: magic, digest, version of NIXL, name of the agent, payload."""
    body = msgspec.msgpack.encode((version, name, payload))
    return ENVELOPE_MAGIC + hashlib.sha256(body).digest() + body


def unwrap_metadata(envelope: bytes, version: str, name: str) -> bytes:
    """Return NIXL's metadata out of its envelope.

    Raises ProtocolError when it is damaged, of another version, or of another agent: loading that one would disturb the
    connection to it.
    """
    if len(envelope) > METADATA_BYTES_MAX or not envelope.startswith(ENVELOPE_MAGIC):
        raise ProtocolError(f"agent metadata: {len(envelope)} bytes without a valid envelope")
    digest = envelope[len(ENVELOPE_MAGIC) : len(ENVELOPE_MAGIC) + DIGEST_BYTES]
    body = envelope[len(ENVELOPE_MAGIC) + DIGEST_BYTES :]
    if hashlib.sha256(body).digest() != digest:
        raise ProtocolError("agent metadata: digest does not match")
    try:
        found_version, found_name, payload = msgspec.msgpack.decode(body, type=tuple[str, str, bytes])
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"agent metadata: {exc}") from exc
    if found_version != version:
        raise ProtocolError(f"agent metadata: expected NIXL {version}, found {found_version}")
    if found_name != name:
        raise ProtocolError(f"agent metadata: expected {name}, found {found_name}")
    return payload


class UnfinishedRead(TransferError):
    """A READ failed, or was given up, and a part of it may still land. `read` is that READ."""

    def __init__(self, message: str, read: Read) -> None:
        super().__init__(message)
        self.read = read


class Read:
    """One READ in flight. The memory that it writes must stay until it is over.

    It is over when `done` returned True or raised anything but UnfinishedRead; else when its agent is destroyed.
    """

    def __init__(self, agent: Any, handle: Any, device: int | None = None, *, fails_whole: bool = True) -> None:
        """Post the READ. device: the GPU whose memory it writes; None: it writes host memory.

        fails_whole: whether nothing of it can land any more once it has failed.
        """
        self._agent = agent
        self._handle = handle
        self._device = device
        self._fails_whole = fails_whole
        self._done = False
        self._failure: str | None = None
        with self._over_when_it_fails(), _translated("post a READ"):
            self._settle(agent.transfer(handle))

    def done(self) -> bool:
        """Say whether the READ has completed. Raises TransferError when it failed, UnfinishedRead if only in part."""
        if self._failure is not None:
            raise UnfinishedRead(self._failure, self)
        if not self._done:
            with self._over_when_it_fails(), _translated("finish a READ"):
                self._settle(self._agent.check_xfer_state(self._handle))
        return self._done

    @contextlib.contextmanager
    def _over_when_it_fails(self) -> Iterator[None]:
        """Hold an error back while copies of the READ may still run: NIXL reports the first row that fails.

        In host memory the other rows are over by then. On a GPU they are queued, and would land later. Over a network
        they may still be under way on another rail: nothing that NIXL offers tells.
        """
        try:
            yield
        except TransferError as exc:
            if self._device is not None:
                CudaDevice(self._device).wait_for_all()
            if self._fails_whole:
                raise
            self._failure = str(exc)
            raise UnfinishedRead(self._failure, self) from exc

    def abandon(self) -> None:
        """Let go of the library, so that its agent can be destroyed. The READ may land until it is."""
        handle, self._handle, self._agent = self._handle, None, None
        with contextlib.suppress(Exception):  # its agent's end is what counts
            handle.release()

    def _settle(self, state: str) -> None:
        if state == "ERR":
            raise TransferError("READ ended in state ERR")
        self._done = state == "DONE"
        if self._done:
            self._handle.release()


class NixlAgent:
    """A NIXL agent with the UCX backend, started so that no peer can harm this process. Thread-safe."""

    def __init__(
        self,
        name: str,
        *,
        ucx_tls: str | None = None,
        threads: int = 2,
        serves: bool = True,
        package: str = "nixl",
    ) -> None:
        """serves: whether peers READ memory that this agent registers.

        package: where to import NIXL from; "nixl" finds the right one by loading torch (see `nixl_package`).
        """
        self.name = name
        self._registrations: list[Any] = []
        self._ending: weakref.ref[Any] | None = None
        tls = choose_ucx_tls(ucx_tls, os.environ.get("UCX_TLS"))
        api = _import_nixl(package)
        self._version = packages.version("nixl")
        by_network = has_rdma()
        mode = "peer" if by_network else "none"
        self.fails_whole = not by_network
        """Whether nothing of a READ can land any more once it has failed: proven for shared memory alone."""
        # The progress thread polls, on a whole core, also while all is idle. Connections by network need it in the
        # owner; shared memory needs nobody: the reader's own thread copies. A reader progresses while it waits.
        config = api.nixl_agent_config(
            enable_prog_thread=by_network and serves, backends=[], sync_mode=api.nixl_thread_sync_t.NIXL_THREAD_SYNC_RW
        )
        options = {
            "ucx_error_handling_mode": mode,
            "num_workers": str(max(1, threads)),
            "engine_config": _EMULATING if by_network else _ONE_SIDED,
        }
        with _translated("start the UCX backend"), _ucx_tls(tls):
            self._agent: Any = api.nixl_agent(name, config)
            self._agent.create_backend(_BACKEND, options)
        logger.info("NIXL agent %s: UCX_TLS=%s, error mode %s, %d workers", name, tls, mode, threads)

    def __repr__(self) -> str:
        return f"NixlAgent({self.name}, {len(self._registrations)} registrations)"

    def register(self, spans: Sequence[tuple[int, int]], memory: str, device: int = 0) -> None:
        """Register ``(address, bytes)`` ranges. Raises TransferError when the backend refuses the memory."""
        with _translated(f"register {len(spans)} {memory} ranges"):
            rows = [(address, nbytes, device, "") for address, nbytes in spans]
            self._registrations.append(self._agent.register_memory(rows, memory))

    def metadata(self) -> bytes:
        """Return what a peer needs in order to connect, in its envelope. To be taken after the last `register`."""
        with _translated("describe the agent"):
            return wrap_metadata(self._agent.get_agent_metadata(), self._version, self.name)

    def connect(self, name: str, envelope: bytes) -> None:
        """Load a peer's metadata and connect. Raises PeerUnreachable."""
        try:
            payload = unwrap_metadata(envelope, self._version, name)
        except ProtocolError as exc:
            raise PeerUnreachable(str(exc)) from exc
        if name == self.name:
            return
        with _translated(f"connect to {name}", PeerUnreachable):
            found = self._agent.add_remote_agent(payload)
            found = found.decode() if isinstance(found, bytes) else found
            if found != name:
                self._agent.remove_remote_agent(found)
                raise PeerUnreachable(f"agent metadata: expected {name}, found {found}")
            self._agent.make_connection(name)

    def disconnect(self, name: str) -> None:
        """Forget a peer; nothing must be in flight with it. Never raises: the peer may be gone already."""
        if name == self.name:
            return
        try:
            with _translated(f"disconnect from {name}"):
                self._agent.remove_remote_agent(name)
        except TransferError as exc:
            logger.debug("%s", exc)

    def read(self, name: str, remote: Descriptors, remote_memory: str, local: Descriptors, local_memory: str) -> Read:
        """Post a READ. Raises TransferError when it cannot be posted, UnfinishedRead if a part of it was."""
        with _translated(f"prepare a READ from {name}"):
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(local, local_memory),
                self._agent.get_xfer_descs(remote, remote_memory),
                name,
            )
        device = int(local[0, 2]) if local_memory == "VRAM" else None
        return Read(self._agent, handle, device, fails_whole=self.fails_whole)

    def close(self) -> None:
        """Give back the registrations. Nothing must be in flight. Idempotent."""
        registrations, self._registrations = self._registrations, []
        for registration in registrations:
            try:
                with _translated("deregister memory"):
                    self._agent.deregister_memory(registration)
            except TransferError as exc:
                logger.warning("%s", exc)

    def destroy(self) -> bool:
        """End the library's agent with all that it has in flight; return whether it is seen to be gone.

        Its UCX workers go, and with them every queue pair and all that would carry out what an emulated READ brings:
        from then on nothing lands. Measured: an owner that was stopped in mid-READ and went on later reached not one
        byte; the same READ landed whole after its handle was released, or the peer removed. Nobody may use this agent
        meanwhile or afterwards. To be called again while it returns False: somebody still refers to the library's
        object. The interpreter's lock is held meanwhile, 0.15 s on shared memory.
        """
        if self._agent is not None:
            self._ending = weakref.ref(self._agent.agent)
            self._agent, self._registrations = None, []
        if self._ending is not None and self._ending() is not None:
            gc.collect()  # the frames of an exception refer to each other
        return self._ending is None or self._ending() is None


def nixl_package() -> str:
    """Return the package in which NIXL is found, "nixl_cu13" say. Raises ConfigError when there is none."""
    return str(_import_nixl("nixl").__name__).partition(".")[0]


def _import_nixl(package: str) -> Any:
    # Imported here: it is heavy, and absent on hosts that only use the relay.
    try:
        return importlib.import_module(f"{package}._api")
    except ImportError as exc:
        raise ConfigError(f"transports names nixl, but the package {package} cannot be imported: {exc}") from exc


@contextlib.contextmanager
def _translated(what: str, kind: type[TransferError] = TransferError) -> Iterator[None]:
    """Turn NIXL's exceptions, which share no base class, into TransferErrors. A lost connection is PeerUnreachable."""
    try:
        yield
    except TransferError:
        raise
    except Exception as exc:
        lost = type(exc).__name__ in {"nixlRemoteDisconnectError", "nixlNotFoundError"}
        raise (PeerUnreachable if lost else kind)(f"{what}: {type(exc).__name__}: {exc}") from exc


@contextlib.contextmanager
def _ucx_tls(value: str) -> Iterator[None]:
    """Set UCX_TLS while a backend starts (UCX reads it then, and offers no other way), and restore it."""
    with _environment_lock:
        before = os.environ.get("UCX_TLS")
        os.environ["UCX_TLS"] = value
        try:
            yield
        finally:
            if before is None:
                del os.environ["UCX_TLS"]
            else:
                os.environ["UCX_TLS"] = before
