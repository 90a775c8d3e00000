"""How engines are told to use other projects' caches, and what is refused before anything starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.harness.launch import EngineOptions, command_line
from benchmarks.peers.peer_engines import MODULES, PeerEngine, Setup, peer_engines, require_importable
from benchmarks.tiers import WAYS
from ghostcacher_connector.core.errors import ConfigError


@pytest.mark.parametrize("way", MODULES)
def test_require_importable_no_python_names_option(way: str) -> None:
    """A peer of another environment is refused at once where none was named."""
    with pytest.raises(ConfigError, match=rf"--ways {way}: expected --peer-python PATH.* found none"):
        require_importable(["plain", way], None)


def test_require_importable_python_without_package_says_what_it_lacks() -> None:
    """The message has the option, the module, and what importing it said."""
    with pytest.raises(ConfigError, match=r"--peer-python .*import mooncake\.store, found: .*No module named"):
        require_importable(["mooncake"], sys.executable)


def test_require_importable_no_such_python_says_so(tmp_path: Path) -> None:
    """A path at which there is no program is a clear error, too."""
    with pytest.raises(ConfigError, match=r"found: .*No such file"):
        require_importable(["lmcache"], str(tmp_path / "python"))


def test_require_importable_ways_of_this_environment_accepted() -> None:
    """What needs no other environment needs no option."""
    require_importable([way for way in WAYS if way not in MODULES], None)


@pytest.mark.parametrize("way", ["plain", "router", "off", "host"])
def test_peer_engines_own_way_none(way: str, tmp_path: Path) -> None:
    """For a way of ours nothing is started, and no engine is changed."""
    with peer_engines(way, Setup(None, 2, 1 << 20, 128, tmp_path)) as engines:
        assert engines == []


def test_peer_engines_offload_each_gets_its_bytes(tmp_path: Path) -> None:
    """Each engine's offloading gets the bytes of one host tier."""
    with peer_engines("offload", Setup(None, 2, 3 << 20, 128, tmp_path)) as engines:
        configs = [json.loads(engine.arguments[1]) for engine in engines]
    assert [config["kv_connector_extra_config"]["cpu_bytes_to_use"] for config in configs] == [3 << 20] * 2


def test_command_line_other_python_runs_it() -> None:
    """An engine of a peer runs in the peer's environment, with its connector."""
    peer = PeerEngine({"kv_connector": "Other"}, "/peers/bin/python")
    options = EngineOptions(model="m", python=peer.python, extra_args=peer.arguments)
    command = command_line(options, 1)
    assert command[0] == "/peers/bin/python"
    assert json.loads(command[command.index("--kv-transfer-config") + 1])["kv_connector"] == "Other"
    assert command_line(EngineOptions(model="m"), 1)[0] == sys.executable
