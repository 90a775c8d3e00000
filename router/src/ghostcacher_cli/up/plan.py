"""From the command line of `ghostcacher up` to what is started: every check that needs no process is made here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ghostcacher_cli.up import sglang
from ghostcacher_cli.up.arguments import UpOptions, engine_value
from ghostcacher_cli.up.launch import (
    ENGINE_BASE_GIB,
    GPU_MEMORY_FLAG,
    ONE_PROCESS_BASE_GIB,
    Place,
    cpu_places,
    gpu_places,
    is_cpu_build,
    memory_needed_gib,
    server_command,
    server_environment,
    transfer_config,
)
from ghostcacher_cli.up.machine import available_gib, is_port_free, require_memory, visible_gpus
from ghostcacher_cli.up.ports import ports_of_engine
from ghostcacher_connector.config import load_settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.config import load_router_settings, variable_of

KV_GIB_WANTED = 4
"""Of KV cache on the CPU, when nobody says: as vLLM's own default. Less when memory is short, at least 1."""
ROUTER_DRAIN_S = 10.0
"""A person who pressed Ctrl-C waits for this long at most, unless the router's settings say otherwise."""

_DATA_PARALLEL = ("--data-parallel-size", "-dp", "--dp-size", "--dp")
_PARALLEL = (
    ("--tensor-parallel-size", "-tp", "--tp-size", "--tp"),
    ("--pipeline-parallel-size", "-pp", "--pp-size"),
    _DATA_PARALLEL,
)


_ENGINES = {
    "vllm": ("vLLM", "docs/getting-started.md says how without a GPU"),
    "sglang": ("SGLang", "without a GPU it is for tests: see tests/support/sglang_cpu/README.md"),
}
"""Name and remark by engine."""


class Command(NamedTuple):
    """What starts a server."""

    argv: tuple[str, ...]
    """The program and its arguments."""
    env: Mapping[str, str]
    """Its environment, whole."""
    url: str
    """The base URL at which it says that it is ready (``/health``)."""


class EnginePlan(NamedTuple):
    """One engine to be."""

    name: str
    """Short, for people."""
    worker: str
    """The worker's name in the fleet."""
    place: Place
    """Where it computes."""
    options: UpOptions
    """What the command line says."""
    env: Mapping[str, str]
    """Its environment, whole."""
    kv_tokens: int | None = None
    """Tokens that SGLang's KV pool shall hold; None: as many as SGLang thinks fit."""

    def command(self, port: int) -> Command:
        """Return what starts it on a port of loopback. What the person wrote comes last, and so wins."""
        options = self.options
        if options.engine == "sglang":
            return self._sglang_command(port)
        arguments = ["--disable-uvicorn-access-log", *(("--dtype", "bfloat16") if is_cpu_build() else ())]
        if engine_value(options.engine_arguments, GPU_MEMORY_FLAG) is None:
            arguments += self.place.arguments
        arguments += ["--kv-transfer-config", transfer_config({"worker_id": self.worker}, port)]
        argv = server_command(options.model, port, [*arguments, *options.engine_arguments])
        return Command(tuple(argv), self.env, f"http://127.0.0.1:{port}")

    def _sglang_command(self, port: int) -> Command:
        options = self.options
        arguments = sglang.linker_arguments({"worker_id": self.worker}, port)
        if self.kv_tokens is not None and engine_value(options.engine_arguments, sglang.POOL_FLAG) is None:
            arguments += [sglang.POOL_FLAG, str(self.kv_tokens)]
        if engine_value(options.engine_arguments, sglang.MEMORY_FLAG) is None:
            arguments += self.place.arguments
        argv = sglang.server_command(options.model, port, [*arguments, *options.engine_arguments])
        return Command(tuple(argv), self.env, f"http://127.0.0.1:{port}")


def plan_engines(options: UpOptions, redis_url: str, environ: Mapping[str, str]) -> list[EnginePlan]:
    """Return the engines to start. Raises ConfigError and NotEnoughMemory, which say what to do.

    ConfigError also for GC_* variables that the connector would refuse, a minute later.
    """
    environ = {**environ, **_tier_variables(options)}
    settings = load_settings({}, environ)
    options = options._replace(host_tier_gib=settings.host_tier_gib)
    require_engine(options.engine)
    _require_object_client(settings.object_url)
    if options.engine == "sglang" and not _gpus_of(options):
        sglang.require_cpu_build(environ)
    ranks, replicas = ranks_of(options), data_parallel_of(options)
    if options.engine == "sglang" and replicas > 1:
        raise ConfigError(f"--dp-size: SGLang's data-parallel ranks do not share: expected 1, got {replicas}")
    kv_gib = _kv_gib(options, environ)
    require_memory(
        options.workers * replicas * _memory_gib(options, kv_gib),
        f"{options.workers} engine{'s' * (options.workers > 1)} of {options.model}",
        "fewer --workers, a smaller model, or a smaller KV cache (--kv-gib) or host tier (--host-tier)",
    )
    own = _environment(options, kv_gib)
    shared = {"GC_REDIS_URL": redis_url, "GC_HOST_TIER_GIB": f"{options.host_tier_gib:g}"}
    base = {**environ, **own, **shared}
    suffix = _fleet_suffix(options)
    kv_tokens = sglang.pool_tokens(options.model, kv_gib) if options.engine == "sglang" and kv_gib else None
    plans = []
    for number, place in enumerate(_places(options), 1):
        ports = ports_of_engine(environ, number - 1, ranks=ranks, data_parallel=replicas)
        env = {**base, **place.env, **ports}
        plans.append(EnginePlan(f"w{number}", f"w{number}{suffix}", place, options, env, kv_tokens))
    return plans


def plan_router(options: UpOptions, redis_url: str, environ: Mapping[str, str]) -> tuple[Command, float]:
    """Return what starts the router, and how long it takes at most to finish what it has, in s.

    Raises ConfigError, also for GC_ROUTER_* variables that the router would refuse.
    """
    host = f"[{options.host}]" if ":" in options.host else options.host
    given: dict[str, object] = {"listen": f"{host}:{options.port}", "redis": True}
    if variable_of("drain_timeout_s") not in environ:
        given["drain_timeout_s"] = ROUTER_DRAIN_S
    env = {**environ, "GC_REDIS_URL": redis_url}
    settings = load_router_settings(given, None, env)
    argv = [sys.executable, "-m", "ghostcacher_cli.main", "router", "--listen", settings.listen, "--redis"]
    argv += ["--drain-timeout-s", str(settings.drain_timeout_s)]
    return Command(tuple(argv), env, base_url(options)), settings.drain_timeout_s


def base_url(options: UpOptions) -> str:
    """Return the URL at which this machine reaches the router."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{options.port}"


def require_engine(engine: str) -> None:
    """Raise ConfigError unless the engine is installed where this program runs."""
    name, hint = _ENGINES[engine]
    if importlib.util.find_spec(engine) is None:
        wanted = " ".join(f"'{requirement}'" for requirement in _extra(engine))
        raise ConfigError(
            f"--engine: {name} is not installed for {sys.executable}; run: {sys.executable} -m pip install "
            f"{wanted} ({hint})"
        )


def _extra(name: str) -> list[str]:
    """Return what an extra of this package asks for, as installed: ``vllm>=0.30,<0.35``."""
    try:
        requirements = importlib.metadata.requires("ghostcacher") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return [name, "nixl"]
    marked = (text.partition(";") for text in requirements)
    return [wanted.strip() for wanted, _, marker in marked if f'extra == "{name}"' in marker.replace("'", '"')]


def require_port(options: UpOptions) -> None:
    """Raise ConfigError unless the router can listen where it shall."""
    try:
        free = is_port_free(options.host, options.port)
    except OSError as exc:
        raise ConfigError(f"--host: expected an address of this machine, got {options.host!r}: {exc}") from None
    if not free:
        raise ConfigError(
            f"--port: {options.port} of {options.host} is in use by another program; stop it, or give another --port"
        )


def ranks_of(options: UpOptions) -> int:
    """Return how many ranks, and so GPUs, the engine's flags ask for. Raises ConfigError."""
    return math.prod(_size(options, flags) for flags in _PARALLEL)


def data_parallel_of(options: UpOptions) -> int:
    """Return how many data-parallel ranks the engine's flags ask for: copies of the model. Raises ConfigError."""
    return _size(options, _DATA_PARALLEL)


def _size(options: UpOptions, flags: Sequence[str]) -> int:
    text = engine_value(options.engine_arguments, *flags)
    if text is not None and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ConfigError(f"{flags[0]}: expected a number from 1 to 9999, got {text!r}")
    return int(text or 1)


def _environment(options: UpOptions, kv_gib: int) -> dict[str, str]:
    if options.engine == "sglang":
        return sglang.server_environment(options.model)
    return server_environment(options.model, kv_gib)


def _places(options: UpOptions) -> list[Place]:
    if options.engine == "sglang":
        return sglang.places(options.workers, _gpus_of(options), ranks=ranks_of(options))
    if is_cpu_build():
        return cpu_places(options.workers, ranks=ranks_of(options))
    return gpu_places(options.workers, _gpus_of(options), gpus_each=ranks_of(options))


def _gpus_of(options: UpOptions) -> Sequence[str]:
    """Return the GPUs that engines may use."""
    return visible_gpus() if options.gpus is None else options.gpus


def _tier_variables(options: UpOptions) -> dict[str, str]:
    """Return the connector's variables for the tiers that the command line names."""
    said = {
        "GC_HOST_TIER_GIB": None if options.host_tier_gib is None else f"{options.host_tier_gib:g}",
        "GC_OBJECT_URL": options.object_url,
    }
    return {name: value for name, value in said.items() if value is not None}


def _require_object_client(url: str | None) -> None:
    """Raise ConfigError where engines would find out, a minute later, that they cannot speak S3."""
    if url is not None and url.startswith("s3:") and importlib.util.find_spec("obstore") is None:
        raise ConfigError("object_url: s3:// needs the package obstore: pip install 'ghostcacher[objects]'")


def _kv_gib(options: UpOptions, environ: Mapping[str, str]) -> int:
    """Return the KV cache of each engine in host memory, in GiB; 0 where it lies on a GPU, or is not ours to say."""
    on_gpus, flag = not is_cpu_build(), f"this build of vLLM takes {GPU_MEMORY_FLAG}"
    if options.engine == "sglang":
        on_gpus, flag = bool(_gpus_of(options)), f"SGLang takes {sglang.MEMORY_FLAG} or {sglang.POOL_FLAG}"
    if on_gpus:
        if options.kv_gib is not None:
            raise ConfigError(f"--kv-gib: is for engines without a GPU; {flag}")
        return 0
    if options.engine == "vllm" and options.gpus is not None:
        raise ConfigError("--gpus: this build of vLLM computes on the CPU")
    own = environ.get("VLLM_CPU_KVCACHE_SPACE", "") if options.engine == "vllm" else ""
    if options.kv_gib is not None or own.isdecimal():
        return int(own) if options.kv_gib is None else options.kv_gib
    copies = options.workers * data_parallel_of(options)
    taken_gib = _memory_gib(options, 0)
    left = (available_gib() or 0.0) - copies * taken_gib
    return max(1, min(KV_GIB_WANTED, int(left / copies / 2)))


def _memory_gib(options: UpOptions, kv_gib: int) -> float:
    by_blocks = engine_value(options.engine_arguments, "--num-gpu-blocks-override") is not None
    in_one_process = options.engine == "vllm" and is_cpu_build() and ranks_of(options) == 1
    base_gib = ONE_PROCESS_BASE_GIB if in_one_process else ENGINE_BASE_GIB
    needed_gib = memory_needed_gib(options.model, 0 if by_blocks else kv_gib, base_gib)
    return needed_gib + (options.host_tier_gib or 0.0)


def _fleet_suffix(options: UpOptions) -> str:
    """Return what makes names unique in the fleet: no two routers of one machine listen on one port.

    The machine's name as well where Redis may be shared with other machines.
    """
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] if options.redis_url else ""
    return f"-{options.port}" + (f"-{host}" if host else "")
