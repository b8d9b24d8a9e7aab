"""`detcam compare`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from detcam.cli.console import Bar, console, counted, examples, progress
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import (
    JsonFlag,
    PrintConfigFlag,
    TrustFlag,
    help_of,
    preset_of,
    require_files,
    require_model,
    with_preset_options,
)
from detcam.config import Preset
from detcam.errors import InputError, plain
from detcam.explainer import Explainer

EPILOG = examples(
    "detcam compare street.jpg --model old.pt --model new.pt",
    "detcam compare photos/*.jpg --model yolov8n.pt --method odam --method gradcam --out compared",
    "detcam compare street.jpg --model yolov8n.pt --layers level --layers evidence --json",
    "detcam compare street.jpg --model yolov8n-seg.pt --config configs/default.yaml --config configs/mask.yaml",
    more="The first value of an option that is given twice is for side A, the second for side B.",
)
TWICE = " Give it twice to compare."
LISTED = 20  # rows in the terminal; all are in the files
PICTURE_WIDTH = 18  # of a terminal's 80 columns
ROOMY = 72  # columns from which there is room for the images' names
OPTIONS = ("model", "method", "layers", "target", "config")  # that may differ between the sides
FILES = ("model", "config")
Side = dict[str, str]  # option -> value, for the options that were given


@with_preset_options()
def compare(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    model: Annotated[list[str] | None, typer.Option(help=help_of("model", TWICE))] = None,
    method: Annotated[list[str] | None, typer.Option(help=help_of("method", TWICE))] = None,
    layers: Annotated[list[str] | None, typer.Option(help=help_of("layers", TWICE))] = None,
    target: Annotated[list[str] | None, typer.Option(help=help_of("target", TWICE))] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help=f"A YAML preset, see configs/; flags win over it.{TWICE}")
    ] = None,
    print_config: PrintConfigFlag = False,
    match: Annotated[float, typer.Option(help="Least IoU of two boxes that are the same object.")] = 0.5,
    *,
    preset: Preset,
    trust_checkpoint: TrustFlag = False,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-compare"),
    as_json: JsonFlag = False,
) -> None:
    """Compare the heatmaps of two models, methods, layers, targets or presets, object by object.

    Objects are matched by class and IoU. Those whose heatmaps differ most come first, and objects of one side only are
    listed too. Writes compare.json and the HTML page compare.html.
    """
    from detcam.analysis.comparison import check_iou
    from detcam.report.comparison_page import PAGE, write_comparison

    files = [str(path) for path in config or ()]
    given = {"model": model, "method": method, "layers": layers, "target": target, "config": files}
    a, b = sides({name: values or [] for name, values in given.items()})
    shared = preset.model_dump(exclude_unset=True)
    presets = [preset_of(**side, **shared) for side in (a, b)]
    if print_config:
        print("---\n".join(f"# {name}\n{side.to_yaml()}" for name, side in zip("AB", presets, strict=True)), end="")
        return
    check_iou(match, "--match")
    if not images:
        raise InputError("images: give at least one image, e.g. detcam compare street.jpg --config a --config b")
    images = require_files(images)
    for side in presets:
        require_model(side)
    why = "the comparison is written when all images are compared: the same command starts over"
    with interruptible(lambda: f"{NOTHING}, because {why}"), progress(console(stderr=True), as_json) as bars:
        explainers = [Explainer(**side.options(), trust_checkpoint=trust_checkpoint) for side in presets]
        compared = _compared(explainers, images, bars("comparing", len(images)), match)
        document = write_comparison(out_dir, compared, names(a, b))
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        report(document, out_dir / PAGE, console())


def sides(given: Mapping[str, Sequence[str]]) -> tuple[Side, Side]:
    """The options of both sides, from the values of each of OPTIONS: none, one for both sides, or one for each.

    Raises an InputError if an option is given more than twice, or no option is given twice.
    """
    for name, values in given.items():
        if len(values) > 2:
            raise InputError(f"--{name} is given {len(values)} times: give it at most twice, once for each side")
    if all(len(values) < 2 for values in given.values()):
        options = ", ".join(f"--{name}" for name in OPTIONS)
        raise InputError(
            f"nothing to compare: give at least one of {options} twice, e.g. --model old.pt --model new.pt, or "
            "--method odam --method gradcam"
        )
    first, second = ({name: values[place] for name, values in given.items() if values} for place in (0, -1))
    return first, second


def names(a: Side, b: Side) -> tuple[str, str]:
    """Names made of the options that differ, e.g. "old.pt" and "new.pt"; of all given options if none differs."""
    different = [name for name in OPTIONS if a.get(name) != b.get(name)] or list(a)
    pairs = [ends(a[name], b[name]) if name in FILES else (a[name], b[name]) for name in different]
    return " · ".join(pair[0] for pair in pairs), " · ".join(pair[1] for pair in pairs)


def ends(first: str, second: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ: "run1/best.pt" and "run2/best.pt"."""
    parts = PurePath(first).parts, PurePath(second).parts
    for count in range(1, max(map(len, parts)) + 1):
        short = [PurePath(*path[-count:]).as_posix() for path in parts]
        if short[0] != short[1] or first == second:
            return short[0], short[1]
    return first, second


def _compared(
    explainers: Sequence[Explainer], images: Sequence[Path], tell: Bar, match: float
) -> Iterator[tuple[Path, Any]]:
    from detcam.analysis.comparison import compare

    for done, path in enumerate(images):
        tell(done, line=f"{done} of {len(images)} images compared")
        a, b = (explainer(path) for explainer in explainers)
        yield path, compare(a, b, match)


def report(document: dict[str, Any], page: Path, out: Console) -> None:
    """Print the first rows as a table, and a summary."""
    for side in ("a", "b"):
        out.print(Text(f"{side.upper()}: {plain(document[side]['name'])}"))
    rows = document["rows"]
    several = document["summary"]["pictures"] > 1 and out.width >= ROOMY
    if rows:
        out.print(_table(rows[:LISTED], several), soft_wrap=False)
    if len(rows) > LISTED:
        out.print(f"... and {len(rows) - LISTED} more", markup=False)
    for line in summary(document["summary"]):
        out.print(line, markup=False, soft_wrap=False)
    out.print(Text(f"Open {plain(str(page))}"))


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
    """The end of a long name: that is where the names of images in a folder differ."""
    if cell_len(name) <= PICTURE_WIDTH:
        return name
    while cell_len(name) >= PICTURE_WIDTH:
        name = name[1:]
    return f"…{name}"


def summary(counts: dict[str, Any]) -> Iterator[str]:
    """The result of the whole comparison, line by line."""
    images, both = (counted(counts[name], noun) for name, noun in (("pictures", "image"), ("both", "object")))
    yield f"{images}: {both} in both, {counts['only_a']} in A only, {counts['only_b']} in B only."
    if counts["similarity"] is not None:
        rank = counts["rank_correlation"]
        also = "" if rank is None else f", rank correlation {_figure(rank)}"
        yield f"On average similarity {_figure(counts['similarity'])}{also} (1: the same heatmap)."


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0:.2f}"  # never -0.00
