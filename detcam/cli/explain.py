"""`detcam explain`."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from detcam import saved
from detcam.analysis.tiles import explain_tiles
from detcam.cli.console import console, counted_labels, examples, progress
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import JsonFlag, TrustFlag, require_files, require_model, require_writable, with_preset_options
from detcam.config import Preset
from detcam.errors import InputError, plain
from detcam.explainer import Explainer
from detcam.explanation import Explanation
from detcam.methods import VIEWS
from detcam.questions.answer import AskedExplanation

EPILOG = examples(
    "detcam explain street.jpg --model yolov8n.pt",
    "detcam explain a.jpg b.jpg --model yolov8n-seg.pt --target mask --out maps",
    "detcam explain street.jpg --model yolov8n.pt --method gradcam --layers model.9",
    "detcam explain street.jpg --model yolov8n.pt --ask 10,20,80,160:person",
    "detcam explain --config configs/mask.yaml --print-config > mine.yaml",
)


@with_preset_options()
def explain(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    *,
    preset: Preset,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-out"),
    ask: Annotated[
        list[str] | None,
        typer.Option(help="x1,y1,x2,y2:class of a missed object: explain its best candidate. Repeatable."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="x,y or x1,y1,x2,y2, for segmenters: explain the object at this point or in this box. Repeatable."
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Side in pixels of square tiles, in which large images are explained. [default: none]"),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Overlap of neighbouring tiles, as a share of the side.")] = 0.2,
    check: Annotated[
        bool,
        typer.Option("--check", help="Hide the hottest pixels of each map and report the fall of the object's score."),
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Write HTML pages, as detcam report does.")] = False,
    trust_checkpoint: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain every object in one or more images.

    Writes explanation.json, heatmaps.npz, an overlay per object and contact.png; with several images, into a
    folder for each. The page of --report shows both views, why and where.
    """
    from detcam.questions.parsing import parse_pair, parse_prompt

    if not images:
        raise InputError("images: give at least one image, e.g. detcam explain street.jpg --model yolov8n.pt")
    questions: dict[str, Any] = {
        "ask": [parse_pair(text) for text in ask or ()] or None,
        "prompts": [parse_prompt(text) for text in prompt or ()] or None,
    }
    if tile is not None and any(questions.values()):
        raise InputError("--tile: --ask and --prompt are about a whole image: leave --tile out, or crop the image")

    def call(explainer: Explainer, path: Path) -> Explanation:
        return explainer(path, **questions) if tile is None else explain_tiles(explainer, path, tile, overlap)

    images = require_files(images)
    require_writable(out_dir)
    require_model(preset)
    folders = folders_of(images, out_dir)
    options = {**preset.options(), "trust_checkpoint": trust_checkpoint}
    places = list(zip(images, folders, strict=True))
    documents = _explain_each(options, report, call, places, out_dir, check, as_json)
    if report:
        from detcam.report import write_report

        shown = [place for folder in folders for place in (folder, *_views(folder))]
        with interruptible(lambda: f"all images are explained in {out_dir}: detcam report {out_dir} writes the pages"):
            page = write_report(out_dir, shown)
        if not as_json:
            console().print(plain(f"Open {page}"), markup=False)
    if as_json:
        print(json.dumps(documents, indent=2, ensure_ascii=False))


def _views(folder: Path) -> list[Path]:
    """The folders in an image's folder that hold its other view."""
    return [place for view in VIEWS if ((place := folder / f"view-{view}") / saved.NAME).exists()]


def _explain_each(
    options: dict[str, Any],
    both: bool,
    call: Callable[[Explainer, Path], Explanation],
    places: Sequence[tuple[Path, Path]],
    out_dir: Path,
    check: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Explain each image into its folder; returns the documents that were written."""
    documents: list[dict[str, Any]] = []

    def written() -> str:
        some = f"{len(documents)} of {len(places)} images are explained in {out_dir}: the same command starts over"
        return some if documents else NOTHING

    out = console()
    with interruptible(written), progress(out, quiet) as bars:
        explained, swept = bars("explaining", len(places), visible=len(places) > 1), bars("sweeping", visible=False)
        explainer = Explainer(**options, progress=lambda done, total: swept(done, total, visible=done < total))
        view = explainer.settings["view"]  # None for maps that answer neither question
        other = next(name for name in VIEWS if name != view) if both and view is not None else None
        beside: Explainer | None = None
        for path, folder in places:
            explanation = call(explainer, path)
            checks = explanation.checks if check else []
            explanation.save(folder, path)
            for stale in _views(folder):
                shutil.rmtree(stale)
            if other is not None:
                try:
                    how = dict(zip(("method", "layers"), VIEWS[other], strict=True))
                    beside = beside or Explainer(**{**options, **how})
                    second = call(beside, path)
                except InputError as error:
                    without = f"{path}: the page shows one view, the model cannot answer {other!r} ({error})"
                    print(f"warning: {plain(without)}", file=sys.stderr)
                else:
                    second.save(folder / f"view-{other}", path)
            documents.append({"source": str(path), "folder": str(folder), **explanation.to_dict()})
            explained(len(documents))
            if not quiet:
                out.print(plain(f"{path}: {counted_labels(explanation.labels)} -> {folder}"), markup=False)
                for note in explanation.notes if isinstance(explanation, AskedExplanation) else []:
                    out.print(plain(f"  {note}"), markup=False)
                for number, (label, checked) in enumerate(zip(explanation.labels, checks, strict=check), 1):
                    out.print(plain(f"  {number} {label}: {checked.sentence()}"), markup=False)
    return documents


def folders_of(images: Sequence[Path], folder: Path) -> list[Path]:
    """The folder of each image's results: `folder` for a single image, else a folder in it named after the image."""
    if len(images) == 1:
        return [folder]
    seen: dict[str, int] = {}
    folders = []
    for path in images:
        name = path.stem if path.stem.strip(".") else "picture"  # `...png` would lead out of the folder
        seen[name] = seen.get(name, 0) + 1
        folders.append(folder / (name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return folders
