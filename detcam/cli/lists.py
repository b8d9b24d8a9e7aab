"""`detcam methods`, `families`, `layers` and `doctor`: the available choices, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from detcam.cli.console import console
from detcam.cli.options import JsonFlag, TrustFlag, require_files
from detcam.errors import plain

if TYPE_CHECKING:
    from detcam.layers import Layer
    from detcam.methods import AnyMethod

ModelArgument = Annotated[
    str, typer.Argument(help="A .pt file, a transformers folder, or the name of a demo model.", show_default=False)
]
NAME_WIDTH = 26  # columns for the name of a method or a family


def methods(as_json: JsonFlag = False) -> None:
    """List the methods with their formula, cost and paper."""
    from detcam.methods import DEFAULT, SECTIONS, plugins

    sections = {**SECTIONS, "From other packages": [*plugins().values()]}
    if as_json:
        rows = [_method_row(method) for section in sections.values() for method in section]
        print(json.dumps({"default": DEFAULT, "methods": rows}, indent=2))
        return
    out = console()
    for title, section in sections.items():
        if section:
            _print_entries(out, title, ((method.name, _method_lines(method)) for method in section))
    out.print(f"The default is {DEFAULT}. Costs are for N objects, unoptimised: F whole forwards,")
    out.print("B backwards and T forwards of what follows the layer. A is the activation at the")
    out.print("layer, g = dS/dA the gradient of the object's scalar S.")


def _method_row(method: type[AnyMethod]) -> dict[str, Any]:
    fields = ("name", "formula", "reads", "object_specific", "passes", "source")
    return {**{field: getattr(method, field) for field in fields}, "parameters": method.parameters()}


def _method_lines(method: type[AnyMethod]) -> list[str]:
    """The formula, cost and paper of a method."""
    cost = method.passes if method.object_specific else f"{method.passes}, the same for every object"
    return [method.formula, cost, method.source]


def families(as_json: JsonFlag = False) -> None:
    """List the supported families of models, and the tested versions of their libraries."""
    from detcam.cli.families import family_rows

    rows = family_rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print_entries(console(), "Families", ((row["family"], _family_lines(row)) for row in rows))


def _family_lines(row: dict[str, Any]) -> list[str]:
    """The models, targets and library of a family."""
    here = f"here {row['installed']}" if row["installed"] else "not installed"
    since = f"{row['oldest']} and " if row["oldest"] else ""
    newest = row["tested"].split()[-1] if since else row["tested"]
    library = [f"tested: {since}{newest}; {here}"] if row["tested"] else []
    return [row["models"], f"targets: {', '.join(row['targets'])}", *library, row["install"]]


def _print_entries(out: Console, title: str, entries: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print a title, and names with lines of text beside them; a long name has its own line."""
    out.print(title, style="bold", markup=False)
    entries = list(entries)
    short = [len(name) for name, _ in entries if len(name) <= NAME_WIDTH]
    indent = max(short, default=2) + 2
    for name, lines in entries:
        wrapped = [
            part
            for line in lines
            for part in wrap(line, max(out.width - indent, 20), break_long_words=False, break_on_hyphens=False)
        ]
        if len(name) + 2 > indent:
            out.print(f"\n{name}", style="bold", markup=False)
        else:
            out.print(Text.assemble("\n", (name.ljust(indent), "bold"), wrapped.pop(0)))
        for line in wrapped:
            out.print(" " * indent + line, markup=False)
    out.print()


def layers(
    model: ModelArgument,
    image: Annotated[
        Path | None, typer.Option(help="An image whose objects are followed back. [default: a drawn scene]")
    ] = None,
    trust_checkpoint: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """List the layers of MODEL that can carry a heatmap, the objects whose score depends on them, and the presets."""
    from detcam.explainer import Explainer
    from detcam.layers import candidate_layers

    if image is not None:
        require_files([image])
    rows = candidate_layers(Explainer(model, trust_checkpoint=trust_checkpoint), image)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    print_layers(rows, console())


def print_layers(rows: Sequence[Layer], out: Console) -> None:
    """Print a table of layers; where names are too long for the terminal, each layer has several lines."""
    cells = [[plain(f"{row.name} {row.output}".strip()), row.kind, str(row.channels), f"{row.height} x {row.width}",
              f"{row.stride:g}", "-" if row.gradient is None else f"{row.gradient:.0%}", ", ".join(row.presets)]
             for row in rows]  # fmt: skip
    table = [["layer", "module", "channels", "cells", "stride", "objects", "presets"], *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if sum(widths) + 2 * len(widths) <= out.width:
        for i, row in enumerate(table):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            out.print(line.rstrip(), style=None if i else "bold", markup=False)
        return
    for name, kind, channels, size, stride, objects, presets in cells:
        facts = f"{kind}: {channels} channels, {size} cells, stride {stride}, {objects} of the objects"
        out.print(name, style="bold", markup=False)
        for line in wrap(f"{facts}; {presets}" if presets else facts, max(out.width - 4, 20)):
            out.print(f"    {line}", markup=False)


def doctor(as_json: JsonFlag = False) -> None:
    """Show what this machine offers: versions, devices, compiled operations."""
    from detcam.cli.doctor import examine, summary

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    out = console()
    for line in summary(facts):
        out.print(line, markup=False)
