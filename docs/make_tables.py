"""Writes the tables of options, families and methods in docs/, and configs/default.yaml: python docs/make_tables.py.

They are generated from the fields of `detcam.config.Preset`, from the registered adapters and methods, and from the
rows of benchmarks/results/architectures.json; a test fails where they differ.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from detcam.cli.families import family_rows
from detcam.config import Preset, default_of
from detcam.methods import SECTIONS

ROOT = Path(__file__).parents[1]
OPTIONS, FAMILIES, METHODS = (ROOT / "docs" / name for name in ("options.md", "families.md", "methods.md"))
DEFAULTS = ROOT / "configs" / "default.yaml"
ARCHITECTURES = ROOT / "benchmarks" / "results" / "architectures.json"
HEAD = (
    "The default options. A preset holds the options that differ from these: give it to any command with --config. "
    "Flags win over it, and --print-config prints the options in force. Written by docs/make_tables.py."
)


def options_table() -> str:
    """The options as a table in Markdown."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, field in Preset.model_fields.items():
        default = default_of(name) or "none"
        shown = f"`{default}`" if isinstance(field.default, str) else default
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(rows)


def families_table() -> str:
    """The families of models as a table in Markdown."""
    rows = ["| family | models | targets |", "|---|---|---|"]
    rows += [f"| {row['family']} | {row['models']} | {', '.join(row['targets'])} |" for row in family_rows()]
    return "\n".join(rows)


def architectures_table() -> str:
    """How the stages of each family of architectures compare with plain autograd, and the sentences of refusals."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in json.loads(ARCHITECTURES.read_text(encoding="utf-8"))["results"]:
        if "outcomes" in row:
            groups.setdefault((row["library"], row["family"]), []).append(row)
    sentences: dict[str, str] = {}
    lines = ["| library | family | networks | outputs | exact | refused | wrong |", "|---|---|---|---|---|---|---|"]
    for (library, family), rows in sorted(groups.items()):
        counts = {"exact": 0, "wrong": 0}
        refused: dict[str, int] = {}
        for outcome, said in (pair for row in rows for pair in row["outcomes"].items()):
            for sentence, stages in said.items():
                if outcome.startswith("refused"):
                    letter = sentences.setdefault(re.sub(r"\[.*?\]'", "'", sentence), chr(ord("a") + len(sentences)))
                    refused[letter] = refused.get(letter, 0) + len(stages)
                elif outcome in counts:
                    counts[outcome] += len(stages)
        models = ", ".join(dict.fromkeys(row["model"] for row in rows))
        layouts = ", ".join(dict.fromkeys(layout for row in rows for layout in row["layouts"]))
        said = ", ".join(f"{count} ({letter})" for letter, count in sorted(refused.items()))
        lines.append(
            f"| {library} | {family} | {models} | {layouts} | {counts['exact']} | {said} | {counts['wrong']} |"
        )
    return "\n".join([*lines, "", *(f"- ({letter}) {sentence}" for sentence, letter in sentences.items())])


def methods_tables() -> str:
    """The methods as tables in Markdown, with a heading for each kind."""
    parts = []
    for title, methods in SECTIONS.items():
        rows = [f"## {title}\n", "| method | map | cost | source |", "|---|---|---|---|"]
        for method in methods:
            cells = (f"`{method.name}`", method.formula, method.passes, method.source)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def default_preset() -> str:
    """The preset of the defaults, with a comment above each option."""
    parts = [_comment(HEAD)]
    for name, field in Preset.model_fields.items():
        unset = f" null: {default_of(name) or 'none'}." if field.default is None else ""
        parts.append(f"{_comment(f'{field.description}{unset}')}\n{yaml.safe_dump({name: field.default}).strip()}")
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def texts() -> dict[Path, str]:
    """The generated files and what they should hold."""
    families = _filled(FAMILIES, "families", families_table())
    return {
        OPTIONS: _filled(OPTIONS, "options", options_table()),
        FAMILIES: _filled(FAMILIES, "architectures", architectures_table(), families),
        METHODS: _filled(METHODS, "methods", methods_tables()),
        DEFAULTS: default_preset(),
    }


def _filled(path: Path, name: str, table: str, page: str | None = None) -> str:
    """The page with the table between its two comments; of a page that is filled in part already, its text."""
    before, after = rf"(<!-- {name}[^\n]*-->\n)", rf"(<!-- end of {name} -->)"
    page = path.read_text(encoding="utf-8") if page is None else page
    return re.sub(f"{before}.*?{after}", lambda found: f"{found[1]}{table}\n{found[2]}", page, flags=re.DOTALL)


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
