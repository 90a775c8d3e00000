"""vLLM's own parser, on what manifests start engines with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.support.helm_chart import DEPLOY, all_values, needs_tools, pods, rendered

pytestmark = pytest.mark.engine

SERVER = "vllm.entrypoints.openai.api_server"


def commands() -> Iterator[list[str]]:
    """Yield what each vLLM server of the chart and of the compose file is started with."""
    for name in all_values():
        for pod in pods(rendered(name)):
            if SERVER in pod.containers[0].get("command", []):
                yield pod.containers[0]["args"]
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    yield from (service["command"] for name, service in services.items() if name[:4] in ("gpu-", "cpu-"))


@needs_tools
def test_vllm_takes_every_flag() -> None:
    """vLLM knows each flag, with a value of its type, and each key of the connector's configuration."""
    pytest.importorskip("vllm")
    from vllm.config import KVTransferConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    seen = list(commands())
    assert len(seen) > 8
    for arguments in seen:
        found = parser.parse_args(arguments)
        assert isinstance(found.kv_transfer_config, KVTransferConfig)
        assert found.kv_transfer_config.kv_connector == "GhostCacherConnector"
