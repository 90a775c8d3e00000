"""What `ghostcacher up` would start, and what it refuses to."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from pathlib import Path

import pytest

from ghostcacher_cli.up import machine, plan
from ghostcacher_cli.up.arguments import UpOptions, parse
from ghostcacher_cli.up.launch import GPU_MEMORY_FLAG, cpu_places, gpu_places
from ghostcacher_cli.up.machine import NotEnoughMemory
from ghostcacher_cli.up.plan import base_url, plan_engines, plan_router, ranks_of, require_port
from ghostcacher_connector.core.errors import ConfigError

REDIS = "unix:///run/redis.sock"


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CPU build of vLLM and 64 GiB."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(plan, "is_cpu_build", lambda: True)
    monkeypatch.setattr("ghostcacher_cli.up.launch.is_cpu_build", lambda: True)
    for module in (machine, plan):
        monkeypatch.setattr(module, "available_gib", lambda: 64.0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for GPUs, with four of them."""
    monkeypatch.setattr(plan, "is_cpu_build", lambda: False)
    monkeypatch.setattr("ghostcacher_cli.up.launch.is_cpu_build", lambda: False)
    monkeypatch.setattr(plan, "visible_gpus", lambda: ("0", "1", "2", "3"))


def options(model: str, *words: str) -> UpOptions:
    return parse([model, *words], {})


def flag(argv: tuple[str, ...], name: str) -> str:
    return argv[len(argv) - 1 - argv[::-1].index(name) + 1]


def test_plan_engines_have_names_places_and_redis(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine has a name that is unique in the fleet, cores of its own, and the index."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    first, second = plan_engines(options(model, "--workers", "2", "--port", "81"), REDIS, {"A": "b"})
    assert (first.name, first.worker, second.worker) == ("w1", "w1-81", "w2-81")
    assert [each.env["VLLM_CPU_OMP_THREADS_BIND"] for each in (first, second)] == ["4,5", "6,7"]
    assert (first.env["GC_REDIS_URL"], first.env["A"], first.env["VLLM_CPU_KVCACHE_SPACE"]) == (REDIS, "b", "4")


def test_plan_shared_redis_machine_in_names(model: str) -> None:
    """Where other machines may use the same Redis, the machine is part of a worker's name."""
    (engine, _) = plan_engines(options(model, "--redis-url", "redis://h:1"), "redis://h:1", {})
    assert engine.worker.startswith("w1-8000-")


def test_engine_command_persons_flags_come_last(model: str) -> None:
    """The connector is configured, secrets are not on the command line, and what the person wrote wins."""
    secret = "redis://:hunter2@h:1"
    (engine, _) = plan_engines(options(model, "--dtype", "float32"), secret, {})
    command = engine.command(4711)
    config = json.loads(flag(command.argv, "--kv-transfer-config"))["kv_connector_extra_config"]
    assert config == {"http_url": "http://127.0.0.1:4711", "worker_id": "w1-8000"}
    assert flag(command.argv, "--dtype") == "float32"
    assert (flag(command.argv, "--port"), command.url) == ("4711", "http://127.0.0.1:4711")
    assert not any("hunter2" in word for word in command.argv)


def test_plan_kv_by_free_memory(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The KV cache is what a person says, else what the environment says, else what leaves room."""
    monkeypatch.setattr(plan, "available_gib", lambda: 9.0)

    def kv(*words: str, **environ: str) -> str:
        return plan_engines(options(model, *words), REDIS, environ)[0].env["VLLM_CPU_KVCACHE_SPACE"]

    assert kv("--workers", "1") == "3"
    assert kv() == kv("--workers", "2") == "1"
    assert kv(VLLM_CPU_KVCACHE_SPACE="2") == "2"
    assert kv("--kv-gib", "5", VLLM_CPU_KVCACHE_SPACE="2") == "5"


@pytest.mark.parametrize(("words", "kv_gib"), [((), "4"), (("-tp", "2"), "3")])
def test_engine_of_one_rank_takes_less_memory(
    model: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], kv_gib: str
) -> None:
    """It has no process for its rank, and more of the memory is left for the KV cache: half of what is free then."""
    for module in (plan, machine):
        monkeypatch.setattr(module, "available_gib", lambda: 9.8)
    (engine,) = plan_engines(options(model, "--workers", "1", *words), REDIS, {})
    assert engine.env["VLLM_CPU_KVCACHE_SPACE"] == kv_gib


def test_plan_too_little_memory_refused(model: str) -> None:
    """What cannot fit is not started; the message says how to ask for less."""
    with pytest.raises(machine.NotEnoughMemory, match=r"2 engines.*fewer --workers.*--kv-gib"):
        plan_engines(options(model, "--workers", "2", "--kv-gib", "40"), REDIS, {})


def test_plan_engine_not_installed_names_the_command(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without vLLM the message has the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install .*'vllm"):
        plan_engines(options(model), REDIS, {})


def test_gpu_each_engine_has_its_own(model: str, gpus: None) -> None:
    """GPUs are divided among engines of several ranks, in order."""
    engines = plan_engines(options(model, "--workers", "2", "-tp", "2"), REDIS, {})
    assert [engine.env["CUDA_VISIBLE_DEVICES"] for engine in engines] == ["0,1", "2,3"]
    assert GPU_MEMORY_FLAG not in engines[0].command(1).argv


def test_gpu_fewer_than_engines_share_memory(model: str, gpus: None) -> None:
    """Engines that share a GPU get a part of its memory each, unless the person said how much."""
    words = ("--workers", "2", "--gpus", "3")
    (first, second) = plan_engines(options(model, *words), REDIS, {})
    assert first.env["CUDA_VISIBLE_DEVICES"] == second.env["CUDA_VISIBLE_DEVICES"] == "3"
    assert flag(first.command(1).argv, GPU_MEMORY_FLAG) == "0.45"
    (first, _) = plan_engines(options(model, *words, GPU_MEMORY_FLAG, "0.2"), REDIS, {})
    assert first.command(1).argv.count(GPU_MEMORY_FLAG) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--workers", "3", "-tp", "2"), "expected 3 x 2 for 3 workers of 2 GPUs each, found 4"),
        (("-tp", "two"), "--tensor-parallel-size: expected a number"),
        (("--kv-gib", "4"), "--kv-gib: is for engines without a GPU"),
    ],
)
def test_gpu_impossible_refused(model: str, gpus: None, words: tuple[str, ...], part: str) -> None:
    """Too few GPUs, or an option for engines without them, is told before anything is started."""
    with pytest.raises(ConfigError) as caught:
        plan_engines(options(model, *words), REDIS, {})
    assert part in str(caught.value)


def test_gpu_none_refused() -> None:
    """A build for GPUs on a machine without one is told so."""
    with pytest.raises(ConfigError, match="found none"):
        gpu_places(1, ())


def test_cpu_ranks_have_cores_of_their_own() -> None:
    """The cores of the ranks of one engine are divided by a bar, as vLLM wants them, which has a process for each."""
    (place,) = cpu_places(1, ranks=2)
    first, second = place.env["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert first
    assert second
    assert set(place.env) == {"VLLM_CPU_OMP_THREADS_BIND"}


@pytest.mark.parametrize(
    ("engines", "threads", "bound"),
    [(1, "4", ["{4,5,6,7}"]), (2, "2", ["{4,5}", "{6,7}"]), (3, "1", [None] * 3), (5, "1", [None] * 5)],
)
def test_cpu_engine_of_one_rank_is_one_process(
    monkeypatch: pytest.MonkeyPatch, engines: int, threads: str, bound: list[str | None]
) -> None:
    """Its threads stay on its cores; where it has one thread, on any core, since engines may be more than cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    places = cpu_places(engines)
    assert [place.env["VLLM_ENABLE_V1_MULTIPROCESSING"] for place in places] == ["0"] * engines
    assert [place.env["OMP_NUM_THREADS"] for place in places] == [threads] * engines
    assert [place.env.get("OMP_PLACES") for place in places] == bound
    assert [place.env.get("OMP_PROC_BIND") for place in places] == [each and "true" for each in bound]


def test_ranks_are_the_product_of_all_kinds(model: str) -> None:
    """Tensor, pipeline and data parallel ranks multiply."""
    assert ranks_of(options(model, "-tp", "2", "--pipeline-parallel-size=3", "-dp", "2")) == 12


def test_fixed_ports_of_several_engines_follow_each_other(model: str) -> None:
    """All inherit one environment; each rank of each engine has a port of its own."""
    environ = {"GC_METRICS_PORT": "9400", "GC_RELAY_LISTEN": "127.0.0.1:9500"}
    first, second = plan_engines(options(model, "--workers", "2", "-dp", "2", "--kv-gib", "1"), REDIS, environ)
    assert (first.env["GC_METRICS_PORT"], second.env["GC_METRICS_PORT"]) == ("9400", "9402")
    assert (first.env["GC_RELAY_LISTEN"], second.env["GC_RELAY_LISTEN"]) == ("127.0.0.1:9500", "127.0.0.1:9502")
    with pytest.raises(ConfigError, match="metrics_port: expected a port of at most 65534"):
        plan_engines(options(model, "--workers", "2", "--kv-gib", "1"), REDIS, {"GC_METRICS_PORT": "65535"})
    any_port = {"GC_METRICS_PORT": "0", "GC_RELAY_LISTEN": "[::1]:0"}
    for engine in plan_engines(options(model, "--workers", "2", "--kv-gib", "1"), REDIS, any_port):
        assert (engine.env["GC_METRICS_PORT"], engine.env["GC_RELAY_LISTEN"]) == ("0", "[::1]:0")


def test_data_parallel_ranks_are_copies_in_memory(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has weights and a KV cache of its own."""
    monkeypatch.setattr(plan, "available_gib", lambda: 10.0)
    monkeypatch.setattr(machine, "available_gib", lambda: 10.0)
    plan_engines(options(model, "--workers", "1", "--kv-gib", "7"), REDIS, {})
    with pytest.raises(machine.NotEnoughMemory):
        plan_engines(options(model, "--workers", "1", "--kv-gib", "7", "-dp", "2"), REDIS, {})
    (engine,) = plan_engines(options(model, "--workers", "1", "-dp", "2"), REDIS, {})
    assert engine.env["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_sglang_data_parallel_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started, by the flag's name."""
    monkeypatch.setattr(plan, "visible_gpus", lambda: ())
    with pytest.raises(ConfigError, match=r"--dp-size: .* expected 1, got 2"):
        plan_engines(options(model, "--engine", "sglang", "--dp-size", "2"), REDIS, ON_CPU)


def test_router_command_drain_and_bad_variable(model: str) -> None:
    """The router listens where it shall, drains for as long as its settings say, and a bad one is told at once."""
    command, drain_s = plan_router(options(model, "--host", "::1", "--port", "81"), REDIS, {})
    assert (flag(command.argv, "--listen"), drain_s) == ("[::1]:81", plan.ROUTER_DRAIN_S)
    assert command.env["GC_REDIS_URL"] == REDIS
    assert plan_router(options(model), REDIS, {"GC_ROUTER_DRAIN_TIMEOUT_S": "2"})[1] == 2
    with pytest.raises(ConfigError, match="GC_ROUTER_RETRIES_MAX"):
        plan_router(options(model), REDIS, {"GC_ROUTER_RETRIES_MAX": "many"})


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("10.0.0.7", "http://10.0.0.7:8000")],
)
def test_base_url_can_be_reached(model: str, host: str, url: str) -> None:
    """An address that means all of them is reached over loopback."""
    assert base_url(options(model, "--host", host)) == url


def test_port_in_use_refused(model: str) -> None:
    """A port that another program has is told before engines spend a minute on loading."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"{port} of 127.0.0.1 is in use"):
            require_port(options(model, "--port", port))
    require_port(options(model, "--port", port))


def test_host_of_another_machine_refused(model: str) -> None:
    """An address that this machine does not have is told by name."""
    with pytest.raises(ConfigError, match=r"--host: expected an address of this machine, got '192\.0\.2\.77'"):
        require_port(options(model, "--host", "192.0.2.77"))


ON_CPU = {"SGLANG_USE_CPU_ENGINE": "1"}


def test_sglang_engine_command(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of SGLang has the linker, a place of its own, and what the person wrote last."""
    monkeypatch.setattr(plan, "visible_gpus", lambda: ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    given = options(model, "--engine", "sglang", "--workers", "2", "--max-total-tokens", "4096")
    first, second = plan_engines(given, REDIS, ON_CPU)
    command = first.command(4711)
    linker = json.loads(flag(command.argv, "--unified-cache-external-linker-config"))
    assert linker["linker_module_path"] == "ghostcacher_connector.engines.sglang"
    assert linker["linker_extra_config"] == {"http_url": "http://127.0.0.1:4711", "worker_id": "w1-8000"}
    assert command.argv[-2:] == ("--max-total-tokens", "4096")
    assert [each.env["SGLANG_CPU_OMP_THREADS_BIND"] for each in (first, second)] == ["4,5", "6,7"]
    assert not any(name.startswith("VLLM_") for name in first.env)


def test_sglang_engines_share_a_gpu_by_its_own_flag(model: str, gpus: None) -> None:
    """Five engines on four GPUs: each takes a part of the memory, unless the person says how much."""
    given = options(model, "--engine", "sglang", "--workers", "5")
    assert flag(plan_engines(given, REDIS, {})[0].command(1).argv, "--mem-fraction-static") == "0.45"
    said = options(model, "--engine", "sglang", "--workers", "5", "--mem-fraction-static", "0.3")
    assert plan_engines(said, REDIS, {})[0].command(1).argv.count("--mem-fraction-static") == 1


def test_sglang_ranks_by_its_own_flags(model: str) -> None:
    """The number of GPUs that an engine takes follows from SGLang's names of the flags, too."""
    assert ranks_of(options(model, "--engine", "sglang", "--tp-size", "2")) == 2


def test_sglang_pool_is_sized_as_vllms(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU each engine's pool takes what memory allows, not most of the machine's, or what the person says."""
    monkeypatch.setattr(plan, "visible_gpus", lambda: ())
    config = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}
    Path(model, "config.json").write_text(json.dumps(config))
    tokens = (1 << 30) // (2 * 4 * 2 * 64 * 4)
    given = options(model, "--engine", "sglang", "--workers", "2")
    assert flag(plan_engines(given, REDIS, ON_CPU)[0].command(1).argv, "--max-total-tokens") == str(4 * tokens)
    said = options(model, "--engine", "sglang", "--kv-gib", "1")
    assert flag(plan_engines(said, REDIS, ON_CPU)[0].command(1).argv, "--max-total-tokens") == str(tokens)


def test_sglang_without_a_gpu_says_what_is_needed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is started."""
    monkeypatch.setattr(plan, "visible_gpus", lambda: ())
    with pytest.raises(ConfigError, match=r"no GPU was found.*SGLANG_USE_CPU_ENGINE=1.*README") as caught:
        plan_engines(options(model, "--engine", "sglang"), REDIS, {})
    assert "\n" not in str(caught.value)


def test_bad_connector_variable_is_refused_before_engines_start(model: str) -> None:
    """A typing error in GC_* costs no minute of loading."""
    with pytest.raises(ConfigError, match="GC_PULL_TIMEOUT: did you mean GC_PULL_TIMEOUT_S"):
        plan_engines(options(model), REDIS, {"GC_PULL_TIMEOUT": "1"})


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        ((), {}, "0"),
        (("--host-tier", "8"), {}, "8"),
        ((), {"GC_HOST_TIER_GIB": "1.5"}, "1.5"),
        (("--host-tier", "0"), {"GC_HOST_TIER_GIB": "1.5"}, "0"),
    ],
)
def test_host_tier_is_each_engines(model: str, words: tuple[str, ...], environ: dict[str, str], expected: str) -> None:
    """The option wins over the connector's variable."""
    for engine in plan_engines(options(model, "--workers", "2", *words), REDIS, environ):
        assert engine.env["GC_HOST_TIER_GIB"] == expected


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        (("--host-tier", "1", "--object-url", "file:///a"), {}, "file:///a"),
        (("--host-tier", "1"), {"GC_OBJECT_URL": "file:///b"}, "file:///b"),
        (("--object-url", "file:///a"), {"GC_OBJECT_URL": "file:///b", "GC_HOST_TIER_GIB": "1"}, "file:///a"),
    ],
)
def test_object_url_is_all_engines(model: str, words: tuple[str, ...], environ: dict[str, str], expected: str) -> None:
    """The option wins over the connector's variable, and the host tier of either is the one behind which it lies."""
    for engine in plan_engines(options(model, "--workers", "2", *words), REDIS, environ):
        assert engine.env["GC_OBJECT_URL"] == expected


@pytest.mark.parametrize("words", [(), ("--host-tier", "0")])
def test_object_url_without_a_host_tier_is_refused(model: str, words: tuple[str, ...]) -> None:
    """Before engines start, and by name."""
    with pytest.raises(ConfigError, match="host_tier_gib: expected more than 0 with object_url"):
        plan_engines(options(model, "--object-url", "file:///a", *words), REDIS, {})


def test_bucket_without_its_client_says_what_to_install(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file needs none."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "obstore" else found(name))
    assert plan_engines(options(model, "--host-tier", "1", "--object-url", "file:///a"), REDIS, {})
    with pytest.raises(ConfigError, match=r"object_url: .*pip install 'ghostcacher\[objects\]'"):
        plan_engines(options(model, "--host-tier", "1", "--object-url", "s3://bucket/p"), REDIS, {})


def test_host_tier_counts_as_memory_that_engines_take(model: str) -> None:
    """The KV cache gets half of what is left beside it; what does not fit is refused before engines start."""
    roomy = plan_engines(options(model, "--workers", "2", "--host-tier", "20"), REDIS, {})
    tight = plan_engines(options(model, "--workers", "2", "--host-tier", "28"), REDIS, {})
    assert int(roomy[0].env["VLLM_CPU_KVCACHE_SPACE"]) > int(tight[0].env["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    with pytest.raises(NotEnoughMemory, match="--host-tier"):
        plan_engines(options(model, "--workers", "2", "--host-tier", "32"), REDIS, {})


def test_kv_gib_is_not_for_gpus(model: str, gpus: None) -> None:
    """On a GPU the size of SGLang's pool is a flag of its own."""
    with pytest.raises(ConfigError, match="--max-total-tokens"):
        plan_engines(options(model, "--engine", "sglang", "--kv-gib", "1"), REDIS, {})


def test_missing_sglang_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SGLang the message says how to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sglang" else object())
    with pytest.raises(ConfigError, match=r"SGLang is not installed.*'sglang=="):
        plan_engines(options(model, "--engine", "sglang"), REDIS, {})
