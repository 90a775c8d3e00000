"""Where Envoy's published messages are, for tests: importing this lets `envoy.service.ext_proc.v3` be imported.

`make setup` puts them into a folder of the environment. Raises ModuleNotFoundError where they are not.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "share" / "envoy-protos"

if not FOLDER.is_dir():
    raise ModuleNotFoundError(f"Envoy's published messages are not in {FOLDER}: make setup")
sys.path.append(str(FOLDER))
