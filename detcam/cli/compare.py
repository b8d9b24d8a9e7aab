"""`detcam compare`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import (
    AdapterFlag,
    ConfFlag,
    DeviceFlag,
    ImgszFlag,
    IouFlag,
    JsonFlag,
    MaxDetFlag,
    PrintConfigFlag,
    SegmentsFlag,
    TextFlag,
    TrustFlag,
    build_explainer,
    preset_of,
)
from detcam.errors import InputError, plain

EPILOG = """
Examples:

`detcam compare street.jpg --model old.pt --model new.pt`

`detcam compare photos/*.jpg --model yolov8n.pt --method odam --method gradcam --out compared`

`detcam compare street.jpg --model yolov8n.pt --layers level --layers evidence --json`

`detcam compare street.jpg --model yolov8n-seg.pt --config configs/default.yaml --config configs/mask.yaml`

Options that are given twice differ between the sides, the first value for A, the second for B; all else is the same.
"""
LINE_SECONDS = 5.0  # between two lines of progress where there is no terminal
LISTED = 20  # rows in the terminal; all are in the files
PICTURE_WIDTH = 18  # of a terminal's 80 columns
ROOMY = 72  # columns from which there is room for the pictures' names


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EPILOG)(compare)


def compare(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A .pt path, a folder of transformers, or a demo model's name; twice to compare. [default: scenes]"
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="See `detcam methods`; twice to compare. [default: auto]")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="auto, level, evidence, or names with commas between; twice to compare. [default: auto]"),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="As in `detcam explain`; twice to compare. [default: class]")
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="A YAML preset, see configs/; flags win over it; twice to compare.")
    ] = None,
    print_config: PrintConfigFlag = False,
    match: Annotated[float, typer.Option(help="Least overlap (IoU) of two boxes that are the same object.")] = 0.5,
    segments: SegmentsFlag = None,
    text: TextFlag = None,
    adapter: AdapterFlag = None,
    conf: ConfFlag = None,
    iou: IouFlag = None,
    max_det: MaxDetFlag = None,
    imgsz: ImgszFlag = None,
    device: DeviceFlag = None,
    trust_checkpoint: TrustFlag = False,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-compare"),
    as_json: JsonFlag = False,
) -> None:
    """Compare the heatmaps of two models, methods, layers, targets or presets, object by object.

    Objects are matched by class and overlap; those whose heatmaps differ most come first, and those that only one side
    found are listed too. Writes compare.json and a page to look at, compare.html.
    """
    from detcam.analysis.comparison import check_iou
    from detcam.cli.sides import names, sides
    from detcam.report.comparison_page import PAGE, write_comparison

    files = [str(path) for path in config or ()]
    given = {"model": model, "method": method, "layers": layers, "target": target, "config": files}
    a, b = sides({name: values or [] for name, values in given.items()})
    presets = [
        preset_of(
            **side, segments=segments, text=text, adapter=adapter, conf=conf, iou=iou, max_det=max_det, imgsz=imgsz,
            device=device,
        )
        for side in (a, b)
    ]  # fmt: skip
    if print_config:
        print("---\n".join(f"# {name}\n{side.to_yaml()}" for name, side in zip("AB", presets, strict=True)), end="")
        return
    check_iou(match, "--match")
    if not images:
        raise InputError("images: give at least one picture, e.g. detcam compare street.jpg --config a --config b")
    for path in images:  # said before a model is loaded
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")
    unwritten = f"{NOTHING}, as a comparison is only when all pictures are compared: the same command starts over"
    with interruptible(lambda: unwritten), _progress(images, quiet=as_json) as shown:
        explainers = [build_explainer({**preset.options(), "trust_checkpoint": trust_checkpoint}) for preset in presets]
        document = write_comparison(out_dir, _compared(explainers, shown, match), names(a, b))
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        report(document, out_dir / PAGE, Console(highlight=False))


def _compared(explainers: Sequence[Any], images: Iterator[Path], match: float) -> Iterator[tuple[Path, Any]]:
    from detcam.analysis.comparison import compare
    from detcam.images import read_image

    for path in images:
        image = read_image(path)
        a, b = (explainer(image) for explainer in explainers)
        yield path, compare(a, b, match)


@contextmanager
def _progress(images: Sequence[Path], quiet: bool) -> Iterator[Iterator[Path]]:
    """The images one by one, with a bar on a terminal and a line every few seconds elsewhere; on standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet or not console.is_terminal:
        yield iter(images) if quiet else _told(images, console)
        return
    with Progress(console=console, transient=True) as bar:
        yield iter(bar.track(images, description="comparing"))


def _told(images: Sequence[Path], console: Console) -> Iterator[Path]:
    told = monotonic()
    for done, path in enumerate(images):
        if monotonic() - told >= LINE_SECONDS:
            told = monotonic()
            console.print(f"{done} of {len(images)} pictures compared", markup=False)
        yield path


def report(document: dict[str, Any], page: Path, console: Console) -> None:
    """Print the first rows as a table, and a summary."""
    for side in ("a", "b"):
        console.print(Text(f"{side.upper()}: {plain(document[side]['name'])}"), soft_wrap=True)
    rows = document["rows"]
    if rows:
        console.print(_table(rows[:LISTED], several=document["summary"]["pictures"] > 1 and console.width >= ROOMY))
    if len(rows) > LISTED:
        console.print(f"... and {len(rows) - LISTED} more", markup=False)
    for line in summary(document["summary"]):
        console.print(line, markup=False)
    console.print(Text(f"Open {plain(str(page))}"), soft_wrap=True)


def _table(rows: list[dict[str, Any]], several: bool) -> Table:
    """A row for each object, never wider than the terminal: long names are cut."""
    names = [Column("object", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)]
    if several:
        names.append(Column("picture", no_wrap=True, overflow="ellipsis"))
    widths = {"score A": 5, "score B": 5, "similarity": 10, "rank corr.": 5}
    numbers = [Column(head, justify="right", width=width) for head, width in widths.items()]
    table = Table(*names, *numbers, expand=several)
    for row in rows:
        cells = [Text(plain((row["a"] or row["b"])["label"]))]
        if several:
            cells.append(Text(_end(plain(Path(row["picture"]).name))))
        scores = [_figure(row[side]["score"]) if row[side] else "none" for side in ("a", "b")]
        table.add_row(*cells, *scores, *(_figure(row[name]) for name in ("similarity", "rank_correlation")))
    return table


def _end(name: str) -> str:
    """The end of a long name: that is where the names of one folder's pictures differ."""
    if cell_len(name) <= PICTURE_WIDTH:
        return name
    while cell_len(name) >= PICTURE_WIDTH:
        name = name[1:]
    return f"…{name}"


def summary(counts: dict[str, Any]) -> Iterator[str]:
    """What the whole comparison comes to, in lines."""
    pictures, both = (_counted(counts[name], thing) for name, thing in (("pictures", "picture"), ("both", "object")))
    yield f"{pictures}: {both} in both, {counts['only_a']} in A only, {counts['only_b']} in B only."
    if counts["similarity"] is not None:
        rank = counts["rank_correlation"]
        also = "" if rank is None else f", rank correlation {_figure(rank)}"
        yield f"On average similarity {_figure(counts['similarity'])}{also} (1: the same heatmap)."


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0:.2f}"  # never -0.00


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
