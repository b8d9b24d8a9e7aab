"""`detcam methods`, `families`, `layers` and `doctor`: the available choices, as text and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
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

NAME_WIDTH = 26  # columns for the name of a method or a family
PACKAGES = ("torch", "torchvision", "ultralytics", "transformers", "numpy", "opencv-python")  # that `doctor` lists


def methods(as_json: JsonFlag = False) -> None:
    """List the methods with their formula, cost and paper."""
    from detcam.methods import DEFAULT, SECTIONS, plugins

    sections = {**SECTIONS, "From other packages": [*plugins().values()]}
    if as_json:
        fields = ("name", "formula", "reads", "object_specific", "passes", "source")
        listed = [method for section in sections.values() for method in section]
        rows = [{**{field: getattr(m, field) for field in fields}, "parameters": m.parameters()} for m in listed]
        print(json.dumps({"default": DEFAULT, "methods": rows}, indent=2))
        return
    out = console()
    for title, section in sections.items():
        costs = [m.passes if m.object_specific else f"{m.passes}, the same for every object" for m in section]
        entries = [(m.name, [m.formula, cost, m.source]) for m, cost in zip(section, costs, strict=True)]
        if entries:
            _print_entries(out, title, entries)
    out.print(f"The default is {DEFAULT}. Costs are for N objects, unoptimised: F whole forwards,")
    out.print("B backwards and T forwards of what follows the layer. A is the activation at the")
    out.print("layer, g = dS/dA the gradient of the object's scalar S.")


def families(as_json: JsonFlag = False) -> None:
    """List the supported families of models, and the tested versions of their libraries."""
    from detcam.cli.families import family_rows

    rows = family_rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print_entries(console(), "Families", [(row["family"], _family_lines(row)) for row in rows])


def _family_lines(row: dict[str, Any]) -> list[str]:
    """The models, targets and library of a family."""
    here = f"here {row['installed']}" if row["installed"] else "not installed"
    since = f"{row['oldest']} and " if row["oldest"] else ""
    newest = row["tested"].split()[-1] if since else row["tested"]
    library = [f"tested: {since}{newest}; {here}"] if row["tested"] else []
    return [row["models"], f"targets: {', '.join(row['targets'])}", *library, row["install"]]


def _print_entries(out: Console, title: str, entries: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a title, and names with lines of text beside them; a long name has its own line."""
    out.print(title, style="bold", markup=False)
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
    model: Annotated[
        str, typer.Argument(help="A .pt file, a transformers folder, or the name of a demo model.", show_default=False)
    ],
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
    import torch

    from detcam import ops, zoo
    from detcam.models.versions import installed

    packages = {name: installed(name) for name in ("detcam", *PACKAGES)}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": packages,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "compiled": {device: ops.is_compiled(device) for device in ("cpu", "cuda")},
        "build": ops.build_info(),
        "demo_models": list(zoo.names()),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    lines = [f"detcam {packages['detcam']} on Python {facts['python']}, {facts['platform']}"]
    lines += [f"  {name}: {packages[name] or 'not installed'}" for name in PACKAGES]
    lines.append(f"  GPU: {facts['cuda'] or 'none, everything runs on the CPU'} ({facts['threads']} CPU threads)")
    for device, compiled in facts["compiled"].items():
        reason = facts["build"].get("missing", {}).get(device, "not built")
        lines.append(f"  operations for {device}: " + ("compiled" if compiled else f"pure PyTorch, slower ({reason})"))
    lines.append(f"  demo models: {', '.join(facts['demo_models']) or 'none'}")
    console().print("\n".join(lines), markup=False)
