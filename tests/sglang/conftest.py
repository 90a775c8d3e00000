"""Tests of the SGLang adapter against SGLang's own classes; they run where SGLang is installed (`make test-sglang`)."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("sglang") else ["test_*.py"]
