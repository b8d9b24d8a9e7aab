"""`detcam explain`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from detcam.cli.console import counted_labels
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import (
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
    SegmentsFlag,
    TargetFlag,
    TextFlag,
    TrustFlag,
    build_explainer,
    preset_of,
    require_files,
    require_writable,
)
from detcam.errors import InputError, plain

out = Console(highlight=False, soft_wrap=True)

EXPLAIN_EPILOG = """
Examples:

`detcam explain street.jpg --model yolov8n.pt`

`detcam explain a.jpg b.jpg --model yolov8n-seg.pt --target mask --out maps`

`detcam explain street.jpg --model yolov8n.pt --method gradcam --layers model.9`

`detcam explain street.jpg --model yolov8n.pt --ask 10,20,80,160:person`

`detcam explain --config configs/mask.yaml --print-config > mine.yaml`
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EXPLAIN_EPILOG)(explain)


def explain(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    model: ModelFlag = None,
    method: MethodFlag = None,
    layers: LayersFlag = None,
    target: TargetFlag = None,
    segments: SegmentsFlag = None,
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
    prompt: Annotated[
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
    from detcam.questions.parsing import parse_pair, parse_prompt

    preset = preset_of(
        config, model=model, method=method, layers=layers, target=target, segments=segments, text=text, adapter=adapter,
        conf=conf, iou=iou, max_det=max_det, imgsz=imgsz, device=device,
    )  # fmt: skip
    if print_config:
        print(preset.to_yaml(), end="")
        return
    if not images:
        raise InputError("images: give at least one picture, e.g. detcam explain street.jpg")
    questions = {
        "ask": [parse_pair(text) for text in ask or ()] or None,
        "prompts": [parse_prompt(text) for text in prompt or ()] or None,
    }
    require_files(images)
    require_writable(out_dir)
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
        explainer = build_explainer({**options, "progress": swept})
        for path, folder in places:
            explanation = explainer(path, **questions)
            explanation.save(folder, path)
            saved += 1
            documents.append({"source": str(path), "folder": str(folder), **explanation.to_dict()})
            advance()
            if not quiet:
                out.print(plain(f"{path}: {counted_labels(explanation.labels)} -> {folder}"), markup=False)
                for note in explanation.notes if questions["ask"] else []:
                    out.print(plain(f"  {note}"), markup=False)
    return documents


def _pages(out_dir: Path, folders: list[Path]) -> Path:
    from detcam.report import write_report

    with interruptible(lambda: f"all pictures are explained in {out_dir}: detcam report {out_dir} writes the pages"):
        return write_report(out_dir, folders)


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
