"""The benchmark of engines that share a core: what needs no engine."""

from __future__ import annotations

import os

import pytest

from benchmarks import shared_core
from benchmarks.harness.launch import EngineOptions, environment, placed


def test_ways_differ_in_processes_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` sets is not left over where vLLM is to do as it does by itself."""
    monkeypatch.setattr("benchmarks.harness.launch.is_cpu_build", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    found = []
    for way in shared_core.ways():
        options = [
            EngineOptions(model="m", cores=cores, env=env) for cores, env in zip(way.cores, way.env, strict=True)
        ]
        for engine in map(environment, placed(options)):
            assert engine["OMP_NUM_THREADS"] == "1"
            names = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "OMP_PLACES")
            found.append(tuple(engine.get(name) for name in names))
    assert found == [
        *[("1", "4", None), ("1", "5", None)],
        *[("1", "4", None), ("1", "4", None)],
        *[("0", "4", "{4}"), ("0", "4", "{4}")],
        *[("0", "nobind", None), ("0", "nobind", None)],
    ]
