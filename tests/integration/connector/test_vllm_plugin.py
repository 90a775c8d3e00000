"""The check of the connector's settings, in vLLM's own parser of flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.engines.vllm import plugin
from tests.integration.connector.enginesim import make_model_dir

CONNECTOR = {"kv_connector": plugin.CONNECTOR, "kv_role": "kv_both", "kv_connector_module_path": plugin.MODULE}
BY_NAME = {"kv_connector": plugin.CONNECTOR, "kv_role": "kv_both"}


@pytest.fixture
def parser() -> FlexibleArgumentParser:
    plugin.register()
    plugin.register()  # vLLM may call it again
    return EngineArgs.add_cli_args(FlexibleArgumentParser())


def flags(**changes: Any) -> list[str]:
    return ["--kv-transfer-config", json.dumps({**CONNECTOR, **changes})]


@pytest.mark.parametrize(
    ("extra", "variable", "named"),
    [
        ({"pul": "auto"}, "GC_PULL", "GhostCacher: unknown setting pul: did you mean pull?"),
        ({}, "GC_PUL", "GhostCacher: unknown environment variable GC_PUL: did you mean GC_PULL?"),
    ],
)
def test_wrong_setting_is_the_parsers_last_line(
    parser: FlexibleArgumentParser,
    extra: dict[str, Any],
    variable: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """vLLM ends as it does for a wrong flag of its own: with status 2, and the reason last."""
    monkeypatch.setenv(variable, "auto")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(flags(kv_connector_extra_config=extra))
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(named)
    assert "--kv-transfer-config" in last


def test_right_settings_and_other_connectors_pass(
    parser: FlexibleArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of ours that is wrong is no concern of an engine that does not use the connector."""
    found = parser.parse_args(flags(kv_connector_extra_config={"pull": "never"}))
    assert found.kv_transfer_config.kv_connector_extra_config == {"pull": "never"}
    assert found.kv_transfer_config.engine_id is not None
    monkeypatch.setenv("GC_PUL", "auto")
    other = parser.parse_args(["--kv-transfer-config", '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'])
    assert other.kv_transfer_config.kv_connector == "ExampleConnector"


def test_callers_in_python_get_a_config_error() -> None:
    """Without a command line there is no process to end."""
    plugin.register()
    with pytest.raises(ConfigError, match="unknown setting pul"):
        KVTransferConfig(**CONNECTOR, kv_connector_extra_config={"pul": "auto"})


def engine_config(model: Path, connector: dict[str, Any], **changes: Any) -> VllmConfig:
    plugin.register()
    transfer = KVTransferConfig(**connector)
    options = {"skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 512, **changes}
    return EngineArgs(model=str(model), kv_transfer_config=transfer, **options).create_engine_config()


@pytest.mark.parametrize("backend", ["native", "lmcache"])
@pytest.mark.parametrize("connector", [CONNECTOR, BY_NAME], ids=["by module", "by name"])
def test_offloading_that_would_replace_the_connector_is_refused(
    tmp_path: Path, connector: dict[str, Any], backend: str
) -> None:
    """vLLM puts its own connector in the place of ours; the engine would serve and never share."""
    model = make_model_dir(tmp_path)
    with pytest.raises(ConfigError, match=r"expected GhostCacherConnector to stay.*--kv-offloading-size \(here: 1"):
        engine_config(model, connector, kv_offloading_size=1.0, kv_offloading_backend=backend)


def test_offloading_without_our_connector_is_none_of_our_business(tmp_path: Path) -> None:
    """Other connectors are replaced as ever, and ours stays when nothing is offloaded."""
    model = make_model_dir(tmp_path)
    other = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    replaced = engine_config(model, other, kv_offloading_size=1.0)
    assert replaced.kv_transfer_config.kv_connector == "OffloadingConnector"
    assert engine_config(model, CONNECTOR).kv_transfer_config.kv_connector == plugin.CONNECTOR


def test_vllm_that_is_built_otherwise_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is loaded in every process of vLLM: a hook that is gone costs the early check, and nothing else."""
    monkeypatch.setattr(plugin, "check_with_the_flags", lambda: KVTransferConfig.no_such_method)
    plugin.register()
