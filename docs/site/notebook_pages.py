"""Makes a page of the site from each notebook: its text and its code, to be read. A hook of MkDocs.

Its links are checked like those of other pages. Links to a notebook lead to its page, and the page has the notebook
itself for download.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"(\]\((?!https?:)[^)#\s]+)\.ipynb([#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb") and file.abs_src_path is not None:
            text = page_of(Path(file.abs_src_path))
            files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return LINK.sub(r"\1.md\2", markdown)


def page_of(notebook: Path) -> str:
    """Return a notebook as Markdown, without results."""
    cells = json.loads(notebook.read_text())["cells"]
    parts = [_part(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    download = f'<a href="{notebook.name}" download>{notebook.name}</a>: [how to run it](index.md)'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n"


def _part(kind: str, source: str) -> str:
    return source if kind == "markdown" else f"```python\n{source}\n```"
