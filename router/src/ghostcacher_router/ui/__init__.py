"""The dashboard: a page, its style sheet and its scripts, as they are sent to browsers."""

from ghostcacher_router.ui.files import ui_files

__all__ = ["ui_files"]
