"""Files of benchmarks/results: summaries only, an interval as [mean, low, high, count], innermost lists on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INTERVAL = ("mean", "low", "high", "count")
INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")


def interval(value: Mapping[str, Any]) -> list[Any]:
    """[mean, low, high, count] of an interval, four digits after the point."""
    numbers = [value[key] for key in INTERVAL]
    return [round(number, 4) if isinstance(number, float) else number for number in numbers]


def intervals(rows: Mapping[str, Mapping[str, Any]], measures: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """The `measures` of each row that have a mean, as `interval` lists."""
    wanted = tuple(measures)
    return {
        name: {m: interval(row[m]) for m in wanted if m in row and row[m]["mean"] is not None}
        for name, row in rows.items()
    }


def write(path: Path, document: Any) -> None:
    """Write a summary as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(INNERMOST.sub(_on_a_line, json.dumps(document, indent=1)) + "\n", encoding="utf-8")


def _on_a_line(match: re.Match[str]) -> str:
    text = match.group()
    return text[0] + " ".join(text[1:-1].split()) + text[-1]
