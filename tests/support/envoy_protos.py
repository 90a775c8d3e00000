"""Where Envoy's published messages are, for tests: importing this lets `envoy.service.ext_proc.v3` be imported.

`make setup` puts them into a folder of the environment. Raises ModuleNotFoundError where they are not.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "envoy-protos"

if not FOLDER.is_dir():
    raise ModuleNotFoundError(f"Envoy's published messages are not in {FOLDER}: make setup")
sys.path.append(str(FOLDER))
if importlib.util.find_spec("envoy") is not None and (found := importlib.import_module("envoy")).__file__ is not None:
    # The wheel with Envoy itself has a package of this name, which is looked for in its own folder alone.
    found.__path__.append(str(FOLDER / "envoy"))
