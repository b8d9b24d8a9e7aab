"""The site builds without a warning, and the files that pages link to exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT

import detcam
from detcam.adapters import ADAPTERS
from detcam.config import Preset

FETCHED = re.compile(r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*href="https?:')
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.nightly
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in PAGES[1:]:
        built = tmp_path / "site" / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
        html = built.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"(https?://[^\"]+)|<link[^>]*rel=\"stylesheet\"[^>]*href=\"(https?://[^\"]+)",
            html,
        )
        assert not fetched, f"{page.name} fetches {fetched}"
    # A file outside docs/ that a page links to is copied.
    assert (tmp_path / "site" / "examples" / "custom_model.py").read_text() == (
        ROOT / "examples/custom_model.py"
    ).read_text()
    assert "Explain every object of an image" in (tmp_path / "site" / "api" / "index.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[\w-]+\.md", str(navigation)))
    assert named == {page.name for page in PAGES[1:]}


def test_the_pages_name_every_family_and_every_option() -> None:
    families = (ROOT / "docs" / "families.md").read_text()
    for adapter in ADAPTERS:
        assert f"| {adapter.family} | {adapter.models} | {', '.join(adapter.targets)} |" in families.splitlines()
    options = (ROOT / "docs" / "options.md").read_text()
    for name in Preset.model_fields:
        assert f"| `{name}` |" in options


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what version 1.2.0 asks for
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", detcam.__version__)
    assert citation["authors"] == [{"name": "The detcam authors"}]
