"""`detcam methods`, `families`, `layers` and `doctor`: what there is to choose from, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from detcam.errors import InputError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ModelArgument = Annotated[str, typer.Argument(help="A .pt path, or the name of a demo model.", show_default=False)]

out = Console(highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(epilog="Example: `detcam methods --json`")(methods)
    app.command(epilog="Example: `detcam families`")(families)
    app.command(epilog="Example: `detcam layers yolov8n.pt --image street.jpg`")(layers)
    app.command(epilog="Example: `detcam doctor`")(doctor)


def methods(as_json: JsonFlag = False) -> None:
    """List the methods: what each reads, what it costs, and its paper."""
    from detcam.methods import DEFAULT, METHODS, WRAPPERS, AnyMethod, Combination, plugins

    every: list[type[AnyMethod]] = [*METHODS.values(), *plugins().values(), Combination, *WRAPPERS.values()]
    fields = ("name", "formula", "reads", "object_specific", "passes", "source")
    rows = [{**{f: getattr(m, f) for f in fields}, "parameters": m.parameters()} for m in every]
    if as_json:
        print(json.dumps({"default": DEFAULT, "methods": rows}, indent=2))
        return
    table = Table("method", "map, and where it comes from", "per object", "cost", title=f"default: {DEFAULT}")
    for row in rows:
        own = "yes" if row["object_specific"] else "no"
        table.add_row(row["name"], Text(f"{row['formula']}\n{row['source']}"), own, row["passes"])
    out.print(table)


def families(as_json: JsonFlag = False) -> None:
    """List the families of models that can be explained, and the versions that were tested."""
    from detcam.families import family_rows

    rows = family_rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("family and models", "targets", "tested; how to get it", width=100, show_lines=True)
    for row in rows:
        since = f"oldest {row['oldest'].split()[-1]}, " if row["oldest"] else ""
        here = f"here {row['installed']}" if row["installed"] else "not installed"
        library = f"{row['tested'] or 'any'}\n{since}{here}\n{row['install']}"
        table.add_row(f"{row['family']}\n{row['models']}", ", ".join(row["targets"]), Text(library))
    out.print(table, markup=False)


def layers(
    model: ModelArgument,
    image: Annotated[Path | None, typer.Option(help="A picture to follow objects back in. [default: a scene]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the layers of MODEL that can carry a heatmap, the objects that reach them, and what the presets use."""
    from detcam.explainer import Explainer
    from detcam.layers import candidate_layers

    if image is not None and not image.exists():  # said before the model is loaded
        raise InputError(f"{image} does not exist: check the path")
    rows = candidate_layers(Explainer(model), image)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
        return
    table = Table(Column("layer", overflow="fold"), "module", "channels", "cells", "stride", "objects", "presets")
    for row in rows:
        cells, share = f"{row.height} x {row.width}", "-" if row.gradient is None else f"{row.gradient:.0%}"
        name = Text(f"{row.name} {row.output}".strip())
        table.add_row(name, row.kind, str(row.channels), cells, f"{row.stride:g}", share, ", ".join(row.presets))
    out.print(table, markup=False)


def doctor(as_json: JsonFlag = False) -> None:
    """Say what this machine can do: versions, devices, compiled operations."""
    from detcam.doctor import examine, summary

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for line in summary(facts):
        out.print(line, markup=False)
