"""The proxies that are compared, and how each is started: command lines only, nothing runs here."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.model import default_cache_dir

OURS = "ghostcacher"
COMPILED = f"{OURS}, compiled"
NGINX = "nginx round robin"
SGLANG = "sglang-router cache_aware"
VLLM = "vllm-router round_robin"
VLLM_CACHE = "vllm-router cache_aware"
PEER_PACKAGES = ("sglang-router", "vllm-router")
BODY_MAX = 64 << 20

NGINX_CONF = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
{user}
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_max_body_size {body_max};
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    upstream engines {{
        {servers}
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""
"""Nothing but forwarding, a chunk at once when it comes: the limit for any proxy."""


class Peer(NamedTuple):
    """A proxy that may be installed. command: None when it is not. hint: how to get it."""

    name: str
    command: Sequence[str] | None
    hint: str


def peers_venv() -> Path:
    """Return the virtual environment for peers: ``$GHOSTCACHER_PEERS_VENV``, else a folder of the cache."""
    configured = os.environ.get("GHOSTCACHER_PEERS_VENV")
    return Path(configured) if configured else default_cache_dir() / "peers-venv"


def nginx_peer(folder: Path, port: int, workers: Sequence[int]) -> Peer:
    """Return nginx with a configuration of its own in `folder`, which is written."""
    hint = "apt-get install nginx-light"
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        return Peer(NGINX, None, hint)
    settings = {
        "folder": folder,
        "user": f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
        "body_max": BODY_MAX,
        "servers": " ".join(f"server 127.0.0.1:{worker};" for worker in workers),
        "port": port,
    }
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(**settings))
    return Peer(NGINX, [program, "-e", "stderr", "-p", str(folder), "-c", str(conf)], hint)


def rust_peer(name: str, venv: Path, port: int, metrics_port: int, workers: Sequence[int]) -> Peer:
    """Return sglang-router or vllm-router, by its name and policy, from a virtual environment."""
    package, policy = name.split()
    hint = "--install-peers, or --peers-venv with " + " and ".join(PEER_PACKAGES)
    launcher = {"sglang-router": "sglang_router.launch_router", "vllm-router": "vllm_router.launch_router"}[package]
    found = any(venv.glob(f"lib/python3.*/site-packages/{launcher.partition('.')[0]}"))
    if not found:
        return Peer(name, None, hint)
    command = [
        *(str(venv / "bin" / "python"), "-m", launcher, "--host", "127.0.0.1", "--port", str(port)),
        *("--policy", policy, "--log-level", "error", "--prometheus-host", "127.0.0.1"),
        *("--prometheus-port", str(metrics_port), "--max-payload-size", str(BODY_MAX)),
        *("--worker-urls", *urls(workers)),
    ]
    return Peer(name, command, hint)


def our_router(
    port: int, workers: Sequence[int], redis_url: str | None, processes: int = 1, site: Path | None = None
) -> Peer:
    """Return our router: with a Redis it finds the workers and what they hold there, else it is given their URLs.

    site: where another build of it is installed, with compiled modules.
    """
    command = [sys.executable, "-m", "ghostcacher_cli.main", "router", "--listen", f"127.0.0.1:{port}"]
    name = OURS
    if site is not None:
        command = ["env", f"PYTHONPATH={site}", *command]
        name = COMPILED
    if processes > 1:
        command += ["--processes", str(processes)]
        name += f", {processes} processes"
    if redis_url is not None:
        return Peer(name, [*command, "--redis-url", redis_url], "")
    workers_given = [part for url in urls(workers) for part in ("--worker", url)]
    return Peer(f"{name}, no index", [*command, "--no-redis", *workers_given], "")


def urls(workers: Sequence[int]) -> list[str]:
    return [f"http://127.0.0.1:{port}" for port in workers]
