"""Clients that other people wrote get the same through the router as from an engine: texts, streams, errors.

The random model makes all that greedy decoding says reproducible, so the reports of a program that talks to the engine
itself and to the router must be equal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clients.served import CLIENTS_PYTHON, HERE, MODEL, Served, run, with_clients, with_node

REQUESTS = 24

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@with_clients
@pytest.mark.parametrize("name", ["openai", "anthropic", "litellm", "langchain", "llama_index", "ghostcacher"])
def test_python_client(served: Served, name: str) -> None:
    direct, routed = served.compared([CLIENTS_PYTHON, str(HERE / "python" / f"{name}_client.py")])
    assert routed == direct
    assert "no error" not in str(direct)


@with_node
@pytest.mark.parametrize("name", ["openai", "anthropic", "ai_sdk", "langchain", "ghostcacher"])
def test_node_client(served: Served, name: str) -> None:
    direct, routed = served.compared(["node", str(HERE / "node" / f"{name}.mjs")])
    assert routed == direct
    assert "no error" not in str(direct)


def test_vllm_bench_serve(served: Served, tmp_path: Path) -> None:
    """vLLM's own benchmark, through the router: no request fails."""
    model = served.router.get("/v1/models")["data"][0]["root"]
    command = [sys.executable, str(HERE / "python" / "vllm_bench.py")]
    command += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", served.router.url]
    command += ["--model", model, "--served-model-name", MODEL, "--dataset-name", "random"]
    command += ["--random-input-len", "64", "--random-output-len", "8", "--num-prompts", str(REQUESTS)]
    command += ["--request-rate", "20", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    run(command, tmp_path)
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["failed"]) == (REQUESTS, 0)
    assert result["total_output_tokens"] == 8 * REQUESTS


@with_clients
def test_guidellm(served: Served, tmp_path: Path) -> None:
    """guidellm, through the router: no request fails."""
    model = served.router.get("/v1/models")["data"][0]["root"]
    command = [str(Path(CLIENTS_PYTHON).with_name("guidellm")), "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={served.router.url},model={MODEL}"]
    command += ["--tokenizer", f"kind=hf_auto,model={model}", "--profile", "kind=concurrent,streams=4"]
    command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
    command += ["--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=8"]
    command += ["--output", f"kind=json,path={tmp_path / 'report.json'}"]
    run(command, tmp_path)
    metrics = json.loads((tmp_path / "report.json").read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert totals["errored"] == 0
    # It leaves those that run when the last one has begun.
    assert totals["successful"] + totals["incomplete"] == REQUESTS
    assert totals["successful"] > REQUESTS / 2
