"""`ghostcacher doctor`: looks at Redis, NIXL and every live worker, and says what is wrong and how to fix it."""

from ghostcacher_cli.doctor.report import Check, Status, exit_code, render, render_json
from ghostcacher_cli.doctor.run import Options, examine

__all__ = ["Check", "Options", "Status", "examine", "exit_code", "render", "render_json"]
