"""vLLM's own parser, on what manifests start engines with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import yaml

from ghostcacher_connector.core.types import PdRole
from ghostcacher_connector.engines.vllm.nesting import OUTER, check_outer, pd_role_of, uses_us
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
    for service in services.values():
        if SERVER in service.get("entrypoint", []):
            yield [*service["entrypoint"][service["entrypoint"].index(SERVER) + 1 :], *service["command"]]


@needs_tools
def test_vllm_takes_every_flag() -> None:
    """vLLM knows each flag, with a value of its type, and each key of the connector's configuration."""
    pytest.importorskip("vllm")
    from vllm.config import KVTransferConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    roles: Counter[PdRole | None] = Counter()
    for arguments in commands():
        transfer = parser.parse_args(arguments).kv_transfer_config
        assert isinstance(transfer, KVTransferConfig)
        assert uses_us(transfer)
        if transfer.kv_connector == OUTER:
            check_outer(transfer)
        roles[pd_role_of(transfer)] += 1
    # Two of the compose file's four profiles and one example have prefill and decode apart.
    assert roles[PdRole.PREFILL] == 2 * 2 + 1
    assert roles[PdRole.DECODE] == 2 * 1 + 2
    assert roles[None] > 8
