"""MkDocs hooks: files outside docs/ that a page links to are copied to the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")  # what a link to ../examples/custom_model.py names


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside docs/ that a page links to, at the same place as seen from the repository's root."""
    root = Path(config.config_file_path).parent
    for page in [file for file in files if file.is_documentation_page()]:
        for name in OUTSIDE.findall(page.content_string):
            if not (root / name).is_file():
                raise PluginError(f"{page.src_uri} links to {name}, which is not a file of the repository")
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point those links at the copied files."""
    return OUTSIDE.sub(r"\1", markdown)
