"""The command line: thin, each command a few calls into the package.

Exit codes: 0; 2 for wrong usage or input, with one line on standard error; 1 for a failure inside.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from detcam.compare.command import register as register_compare
from detcam.errors import DetcamError, InputError, OutputError, plain
from detcam.evaluate.command import register as register_evaluate
from detcam.flags import (
    AdapterFlag,
    ConfFlag,
    ConfigFlag,
    DeviceFlag,
    ImgszFlag,
    IouFlag,
    JsonFlag,
    LayersFlag,
    MaxDetFlag,
    MethodFlag,
    ModelFlag,
    PrintConfigFlag,
    RegionsFlag,
    TargetFlag,
    TextFlag,
    TrustFlag,
    preset_of,
)
from detcam.interrupted import CODE, NOTHING, Interrupted, interruptible
from detcam.listings import register as register_listings
from detcam.report.command import register as register_report
from detcam.scale.command import register as register_batch
from detcam.video.command import register as register_video

app = typer.Typer(
    name="detcam",
    help="For every object that a detector or segmenter found: a heatmap of the pixels that made it say so.",
    epilog="Give --debug with any command for the full traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out = Console(highlight=False, soft_wrap=True)
DEMO_SEEDS = (4, 0, 3)  # the first scenes of the held-out seeds that a newcomer sees

EXPLAIN_EPILOG = """
Examples:

`detcam explain street.jpg --model yolov8n.pt`

`detcam explain a.jpg b.jpg --model yolov8n-seg.pt --target mask --out maps`

`detcam explain street.jpg --model yolov8n.pt --method gradcam --layers model.9`

`detcam explain street.jpg --model yolov8n.pt --ask 10,20,80,160:person`

`detcam explain --config configs/mask.yaml --print-config > mine.yaml`
"""


@app.command(epilog=EXPLAIN_EPILOG)
def explain(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    model: ModelFlag = None,
    method: MethodFlag = None,
    layers: LayersFlag = None,
    target: TargetFlag = None,
    regions: RegionsFlag = None,
    text: TextFlag = None,
    adapter: AdapterFlag = None,
    conf: ConfFlag = None,
    iou: IouFlag = None,
    max_det: MaxDetFlag = None,
    imgsz: ImgszFlag = None,
    device: DeviceFlag = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-out"),
    config: ConfigFlag = None,
    print_config: PrintConfigFlag = False,
    ask: Annotated[
        list[str] | None,
        typer.Option(help="x1,y1,x2,y2:class of an object that was missed: explain its best candidate. Repeatable."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="x,y or x1,y1,x2,y2 in a segmenter's picture: explain what is there. Repeatable."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write pages to look at, as detcam report does.")] = False,
    trust_checkpoint: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain every object in one or more pictures.

    Writes explanation.json, heatmaps.npz, an overlay per object and contact.png; with several images, into a
    folder for each.
    """
    from detcam.options import parse_pair
    from detcam.regions import parse_region

    preset = preset_of(
        config, model=model, method=method, layers=layers, target=target, regions=regions, text=text, adapter=adapter,
        conf=conf, iou=iou, max_det=max_det, imgsz=imgsz, device=device,
    )  # fmt: skip
    if print_config:
        print(preset.to_yaml(), end="")
        return
    if not images:
        raise InputError("images: give at least one picture, e.g. detcam explain street.jpg")
    questions = {
        "ask": [parse_pair(text) for text in ask or ()] or None,
        "regions": [parse_region(text) for text in region or ()] or None,
    }
    _require_files(images)
    _require_writable(out_dir)
    folders = _folders(images, out_dir)
    options = {**preset.options(), "trust_checkpoint": trust_checkpoint}
    documents = _explain_each(options, questions, list(zip(images, folders, strict=True)), out_dir, as_json)
    if report:
        page = _pages(out_dir, folders)
        if not as_json:
            out.print(plain(f"Open {page}"), markup=False)
    if as_json:
        print(json.dumps(documents, indent=2, ensure_ascii=False))


def _explain_each(
    options: dict[str, Any], questions: dict[str, Any], places: Sequence[tuple[Path, Path]], out_dir: Path, quiet: bool
) -> list[dict[str, Any]]:
    """Explain each picture into its folder; returns what was written."""
    documents: list[dict[str, Any]] = []
    saved = 0

    def written() -> str:
        some = f"{saved} of {len(places)} pictures are explained in {out_dir}: the same command starts over"
        return some if saved else NOTHING

    with interruptible(written), _progress(len(places), quiet) as (advance, swept):
        explainer = _explainer({**options, "progress": swept})
        for path, folder in places:
            explanation = explainer(path, **questions)
            explanation.save(folder, path)
            saved += 1
            documents.append({"source": str(path), "folder": str(folder), **explanation.to_dict()})
            advance()
            if not quiet:
                out.print(plain(f"{path}: {_count(explanation.labels)} -> {folder}"), markup=False)
                for note in explanation.notes if questions["ask"] else []:
                    out.print(plain(f"  {note}"), markup=False)
    return documents


def _pages(out_dir: Path, folders: list[Path]) -> Path:
    from detcam.report import write_report

    with interruptible(lambda: f"all pictures are explained in {out_dir}: detcam report {out_dir} writes the pages"):
        return write_report(out_dir, folders)


@app.command(epilog="Example: `detcam demo --out demo`")
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, max=100, help="How many scenes.")] = 3,
) -> None:
    """Explain held-out scenes with the demo model that comes with the package: needs no weights and no photo."""
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    _require_writable(out_dir)
    saved = 0
    with interruptible(lambda: f"{saved} of {scenes} scenes are explained in {out_dir}" if saved else NOTHING):
        explainer = _explainer({"model": "scenes"})
        for i in range(scenes):
            folder = out_dir if i == 0 else out_dir / f"scene_{i + 1:03d}"
            explanation = explainer(
                draw_scene(HELD_OUT_SEED + DEMO_SEEDS[i % len(DEMO_SEEDS)] + i // len(DEMO_SEEDS)).image
            )
            explanation.save(folder)
            saved += 1
            out.print(f"scene {i + 1}: {_count(explanation.labels)} -> {folder}", markup=False)
    out.print(f"Open {out_dir / 'contact.png'}\n", markup=False)
    out.print("The same for a photo of yours, with weights you have or that ultralytics downloads:\n")
    out.print("    detcam explain photo.jpg --model yolov8n.pt --out photo-maps\n")


register_listings(app)
register_report(app)
register_video(app)
register_evaluate(app)
register_batch(app)
register_compare(app)


def _explainer(options: dict[str, Any]) -> Any:
    from detcam.explainer import Explainer

    return Explainer(**options)


def _require_files(images: Sequence[Path]) -> None:
    """Complain about a missing picture before the model is loaded and before anything is written."""
    for path in images:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")


def _require_writable(folder: Path) -> None:
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be written ({parent} is no writable folder): choose another --out")


def _folders(images: Sequence[Path], folder: Path) -> list[Path]:
    """Where each picture's results go: the folder itself for one, else a folder of the picture's name in it."""
    if len(images) == 1:
        return [folder]
    seen: dict[str, int] = {}
    folders = []
    for path in images:
        name = path.stem if path.stem.strip(".") else "picture"  # `...png` would lead out of the folder
        seen[name] = seen.get(name, 0) + 1
        folders.append(folder / (name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return folders


@contextmanager
def _progress(pictures: int, quiet: bool) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None]]]:
    """Bars on a terminal, one for several pictures and one for a method that sweeps; nothing elsewhere.

    Yields a function to call after each picture, and one that takes (forwards done, forwards in all).
    """
    with Progress(console=out, transient=True, disable=quiet or not out.is_terminal) as bar:
        explained = bar.add_task("explaining", total=pictures, visible=pictures > 1)
        sweep = bar.add_task("sweeping", visible=False)
        yield (
            lambda: bar.advance(explained),
            lambda done, total: bar.update(sweep, completed=done, total=total, visible=done < total),
        )


def _count(labels: Sequence[str]) -> str:
    """`5 objects (4 person, 1 bus)`."""
    kinds = [f"{labels.count(label)} {label}" for label in dict.fromkeys(labels)]
    listed = f" ({', '.join(kinds)})" if kinds else ""
    return f"{len(labels)} object{'' if len(labels) == 1 else 's'}{listed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are one line on standard error."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("YOLO_VERBOSE", "False")  # ultralytics' banner would mix with our output
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="detcam") or 0
        if code == CODE:  # typer's own answer to Ctrl-C, where no command had begun to write
            raise KeyboardInterrupt
        return int(code)
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"interrupted: {plain(stopped) or NOTHING}", file=sys.stderr)
        return CODE
    except Exception as error:
        if debug:
            traceback.print_exc()
        if hasattr(error, "format_message"):  # a usage error of typer's parser
            return _fail(f"{error.format_message()} Try 'detcam --help'.", 2)
        if isinstance(error, (DetcamError, ImportError)):
            return _fail(str(error), 2)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"{reason} (a failure inside detcam; run again with --debug and report it)", 1)


def _fail(message: str, code: int) -> int:
    print(f"error: {plain(' '.join(message.split()))}", file=sys.stderr)
    return code
