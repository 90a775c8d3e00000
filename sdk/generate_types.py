"""Makes the types of the router's admin API for both clients from its schema, so that they cannot drift.

python sdk/generate_types.py            # write them
python sdk/generate_types.py --check    # exit 1, naming the files that are not up to date
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from deploy.generated_files import keep
from ghostcacher_connector.core import admin_api, dashboard_api
from ghostcacher_connector.core.types import FlushScope

ROOT = Path(__file__).resolve().parent
CLIENT = ROOT / "python" / "src" / "ghostcacher" / "client"
TYPESCRIPT = ROOT / "typescript" / "src" / "admin-types.ts"
NOTE = "Made by sdk/generate_types.py from the router's schema: change that, then `make reference`."

MODULES = (admin_api, dashboard_api)
"""The schema, in order: a later module uses an earlier one."""

_SCALARS = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null", Any: "unknown"}


def structs(*modules: ModuleType) -> list[type[msgspec.Struct]]:
    """Return the structures of the schema, or of some of its modules, in their order."""
    return [
        kind
        for module in modules or MODULES
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    ]


def constants() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the meaning of each constant of the schema."""
    body = ast.parse(inspect.getsource(admin_api)).body
    for node, text in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(text, ast.Expr):
            yield node.targets[0].id, ast.literal_eval(node.value), ast.literal_eval(text.value)


def docs_of(kind: type) -> Mapping[str, str]:
    """Return the docstrings that stand behind the names of one class."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, text in itertools.pairwise(body.body):
        target = (
            node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else 0
        )
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr):
            found[target.id] = ast.literal_eval(text.value)
    return found


def python_admin() -> str:
    """Return the admin API's schema as a module that needs nothing of ours."""
    parts = [
        f'"""What the router\'s admin API answers and takes.\n\n{NOTE}\n"""\n\nfrom __future__ import annotations\n\n'
        "from enum import Enum\nfrom typing import Any\n\nimport msgspec\n"
    ]
    parts += [f'\n{name} = "{value}"\n"""{text}"""' for name, value, text in constants()]
    parts += [f"\n\n\n{inspect.getsource(kind).rstrip()}" for kind in (FlushScope, *structs(admin_api))]
    return "".join(parts) + "\n"


def python_dashboard() -> str:
    """Return what the dashboard asks for as a module beside that one."""
    parts = [
        f'"""What the router answers to its dashboard, and to whoever else asks.\n\n{NOTE}\n"""\n\n'
        "from __future__ import annotations\n\nimport msgspec\n\nfrom ghostcacher.client.admin_types import Quantiles"
    ]
    parts += [f"\n\n\n{inspect.getsource(kind).rstrip()}" for kind in structs(dashboard_api)]
    return "".join(parts) + "\n"


def typescript_module() -> str:
    """Return the schema as interfaces.

    A field that has a default may be missing in the answer of a router of another version, and in what is sent.
    """
    parts = [f"/**\n * What the router's admin API answers and takes.\n *\n * {NOTE}\n */\n"]
    parts += [f'\n{comment(text)}export const {name} = "{value}";\n' for name, value, text in constants()]
    parts.append(enum_type(FlushScope))
    parts += [interface(kind) for kind in structs()]
    return "".join(parts)


def enum_type(kind: type[Enum]) -> str:
    docs = docs_of(kind)
    lines = [f" * - `{one.value}`: {squeezed(docs[one.name])}\n" for one in kind]
    values = " | ".join(f'"{one.value}"' for one in kind)
    head = f"/**\n * {squeezed(inspect.getdoc(kind) or '')}\n *\n"
    return f"\n{head}{''.join(lines)} */\nexport type {kind.__name__} = {values};\n"


def interface(kind: type[msgspec.Struct]) -> str:
    base = kind.__bases__[0]
    extends = f" extends {base.__name__}" if base is not msgspec.Struct else ""
    own = vars(kind).get("__annotations__", {})
    hints, docs = typing.get_type_hints(kind), docs_of(kind)
    fields = [
        f"{comment(docs.get(field.name, ''), '  ')}  {field.encode_name}{'' if field.required else '?'}: "
        f"{type_name(hints[field.name])};\n"
        for field in msgspec.structs.fields(kind)
        if field.name in own
    ]
    return f"\n{comment(inspect.getdoc(kind) or '')}export interface {kind.__name__}{extends} {{\n{''.join(fields)}}}\n"


def type_name(annotation: Any) -> str:
    """Return what TypeScript calls a type. Raises TypeError for one that the schema has not had so far."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_name, inner))
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        element = type_name(inner[0])
        return f"({element})[]" if " " in element else f"{element}[]"
    if origin is dict and inner[0] is str:
        return f"Record<string, {type_name(inner[1])}>"
    if annotation is FlushScope or annotation in structs():
        return str(annotation.__name__)
    raise TypeError(f"{annotation}: expected a type that TypeScript has a name for")


def comment(text: str, indent: str = "") -> str:
    return f"{indent}/** {squeezed(text)} */\n" if text else ""


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("*/", "* /")


def made() -> dict[Path, str]:
    """Return the text of each file."""
    return {
        CLIENT / "admin_types.py": python_admin(),
        CLIENT / "dashboard_types.py": python_dashboard(),
        TYPESCRIPT: typescript_module(),
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with --check compare them; return the exit code."""
    return keep(made(), arguments, target="reference")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
