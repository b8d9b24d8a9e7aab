"""`detcam evaluate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import (
    AdapterFlag,
    ConfFlag,
    ConfigFlag,
    DeviceFlag,
    ImgszFlag,
    IouFlag,
    JsonFlag,
    MaxDetFlag,
    PrintConfigFlag,
    SegmentsFlag,
    TargetFlag,
    TextFlag,
    TrustFlag,
    preset_of,
)
from detcam.errors import InputError, plain

if TYPE_CHECKING:
    from detcam.config import Preset
    from detcam.explanation import Explanation

EPILOG = """
Examples:

`detcam evaluate --model yolov8n.pt --images photos --labels labels --out judged`

`detcam evaluate --model yolov8n.pt --images photos --labels instances.json --methods odam,fused,drise --quick`

`detcam evaluate --model yolov8n.pt --images photos --labels labels --methods odam,layercam --report`

`detcam evaluate --config mine.yaml --images photos --labels labels`

`detcam evaluate --scenes 200 --out judged`
"""
MAPS = "maps"  # folder of what --report keeps
FEW = 3  # objects per picture of a quick run: some methods take a backward through the whole model for each
HEADLINES = ("energy_in_mask", "odi", "deletion_blur", "insertion_blur", "randomised", "forwards")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EPILOG)(evaluate)


def evaluate(
    model: Annotated[
        str | None, typer.Option(help="A .pt path, a folder of transformers, or a demo model's name.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="COCO's .json, or a folder of YOLO's .txt or of masks as .png, with the pictures' names."),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, help="Judge on so many drawn scenes of each kind instead, whose cause is known."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="all, or names with commas between. [default: the preset's, or all]")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="level, evidence or module names, commas between. [default: the preset's, or the first two]"),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-evaluate"),
    quick: Annotated[bool, typer.Option("--quick", help="A look in under 5 minutes on 2 cores.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the rows that --out holds.")] = False,
    pictures: Annotated[int | None, typer.Option(min=1, help="Judge so many pictures only.")] = None,
    objects: Annotated[
        int | None, typer.Option(min=1, help="Objects per picture for deletion, insertion and stability. [default: 3]")
    ] = None,
    fills: Annotated[str, typer.Option(help="What hides pixels: blur, black, inpaint.")] = "blur",
    target: TargetFlag = None,
    segments: SegmentsFlag = None,
    text: TextFlag = None,
    adapter: AdapterFlag = None,
    conf: ConfFlag = None,
    iou: IouFlag = None,
    max_det: MaxDetFlag = None,
    imgsz: ImgszFlag = None,
    device: DeviceFlag = None,
    config: ConfigFlag = None,
    print_config: PrintConfigFlag = False,
    trust_checkpoint: TrustFlag = False,
    report: Annotated[
        bool, typer.Option("--report", help="Keep all maps of the pictures, and write pages to look at them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge heatmaps: where they point, whether the score follows them, whether they depend on the model.

    Every method at every layer, and baselines that know nothing, on identical objects. Writes report.json, report.md,
    plots with intervals, and a row for each picture, from which a run that was stopped goes on with --resume.
    """
    preset = preset_of(
        config, model=model, target=target, segments=segments, text=text, adapter=adapter, conf=conf, iou=iou,
        max_det=max_det, imgsz=imgsz, device=device,
    )  # fmt: skip
    chosen = methods.split(",") if methods else _own(preset.method, ["all"])
    places = layers.split(",") if layers else _own(preset.layers, ["level", "evidence"])
    if print_config:
        print(_printed(preset, chosen, places), end="")
        return
    with interruptible(lambda: _written(out_dir)):
        if scenes is not None:
            options = {"config": config} if config else preset.model_dump(exclude_unset=True)
            given = {"images": images, "labels": labels, **options}
            if needless := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
                raise InputError(f"--scenes come with models, labels and options: leave out {', '.join(needless)}")
            if report:
                raise InputError("--report shows the maps of pictures: give --model, --images and --labels")
            document = _on_scenes(20 if quick else scenes, chosen, places, quick, out_dir, resume, as_json)
        elif "model" not in preset.model_fields_set or images is None or labels is None:
            raise InputError("evaluate: give --model, --images and --labels, or --scenes 200")
        else:
            document = _on_photographs(
                preset, trust_checkpoint, images, labels, chosen, places, quick, out_dir, resume, as_json,
                tuple(fills.split(",")), pictures, objects, report,
            )  # fmt: skip
        _finish(out_dir, document, as_json)
        if report:
            _write_pages(out_dir, labels, as_json)


def _own(choice: str | list[str], otherwise: list[str]) -> list[str]:
    """What a preset wants judged, as flags name it; `otherwise` where it leaves the choice."""
    return otherwise if choice == "auto" else [choice if isinstance(choice, str) else "+".join(choice)]


def _printed(preset: Preset, methods: list[str], layers: list[str]) -> str:
    """The options in force as a preset, without methods or layers where it could not hold them: it has one of each."""
    unsaid = {"method": methods == ["all"] or len(methods) > 1, "layers": len(layers) > 1}
    places = layers[0].split("+") if "+" in layers[0] else layers[0]
    chosen = preset.updated(method=methods[0], layers=places)
    return chosen.to_yaml(without=[name for name, several in unsaid.items() if several])


def _written(folder: Path) -> str:
    from detcam.cli.console import counted
    from detcam.evaluate.store import ROWS

    rows = len(list((folder / ROWS).glob("*.json")))
    return f"{counted(rows, 'picture')} judged in {folder}: go on with --resume" if rows else NOTHING


def _on_photographs(
    preset: Preset, trust: bool, images: Path, labels: Path, methods: Sequence[str], layers: Sequence[str], quick: bool,
    folder: Path, resume: bool, quiet: bool, fills: tuple[str, ...], limit: int | None, objects: int | None, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    from detcam.evaluate.contenders import contenders
    from detcam.evaluate.judge import Judge, Protocol, pictures
    from detcam.evaluate.labels.read import read_labels
    from detcam.evaluate.metrics.masking import FILLS
    from detcam.evaluate.report import summarise
    from detcam.evaluate.store import Store
    from detcam.models.load import load_model

    if wrong := [fill for fill in fills if fill not in FILLS]:
        raise InputError(f"fill {wrong[0]!r} does not exist: choose of {', '.join(FILLS)}")
    protocol = Protocol.quick() if quick else Protocol()
    given = {"pictures": limit, "objects": objects}
    protocol = replace(protocol, fills=fills, **{k: v for k, v in given.items() if v is not None})
    paths, truth = pictures(images, protocol), read_labels(labels)
    if quick:
        preset = preset.updated(max_det=min(preset.max_det, FEW))
    loaded, options = load_model(preset.model, trust), preset.options()
    for own in ("model", "method", "layers"):  # of each contender
        del options[own]
    taking_part, left_out = contenders(loaded, methods, layers, quick, **options)
    settings = {
        **preset.model_dump(exclude={"method"}), "weights": _fingerprint(preset.model),
        "images": str(images.resolve()), "pictures": len(paths), "labels": str(labels.resolve()),
        "methods": list(methods), "layers": list(layers), "quick": quick, "report": keep, "protocol": asdict(protocol),
    }  # fmt: skip
    store = Store(folder, settings, resume)
    judge = Judge(loaded, taking_part, truth, protocol, _keep_in(folder / MAPS) if keep else None, **options)
    done = store.done()
    for row in _shown(judge.rows(paths, done), len(paths), len(done), quiet):
        store.add(row)
    document = summarise(list(store.rows()), protocol.measures(), settings)
    return {**document, "left_out": left_out}


def _on_scenes(
    count: int, methods: Sequence[str], layers: Sequence[str], quick: bool, folder: Path, resume: bool, quiet: bool
) -> dict[str, Any]:
    from detcam.evaluate.planted import rows as scenes
    from detcam.evaluate.report import summarise
    from detcam.evaluate.store import Store

    settings = {"scenes": count, "methods": list(methods), "layers": list(layers), "quick": quick}
    store = Store(folder, settings, resume)
    wanted, done, left_out = scenes.names(count), store.done(), dict[str, str]()
    rows = scenes.rows(wanted, methods, layers, left_out, quick, done)
    for row in _shown(rows, len(wanted), len(done), quiet):
        store.add(row)
    document = summarise(list(store.rows()), scenes.measures(), settings)
    return {**document, "left_out": left_out}


def _keep_in(folder: Path) -> Callable[[Path, str, Explanation], object]:
    """Saves every contender's explanation: a folder for each picture, and in it one for each contender."""
    return lambda path, name, explanation: explanation.save(folder / path.stem / name.replace(" @ ", "-"), path)


def _write_pages(folder: Path, labels: Path | None, quiet: bool) -> None:
    from rich.console import Console

    from detcam.report import write_report

    page = write_report(folder / MAPS, labels=labels)
    Console(highlight=False, soft_wrap=True, quiet=quiet).print(plain(f"Maps: {page}"), markup=False)


def _fingerprint(model: str) -> str | None:
    """The first digits of the SHA-256 of a weights file; None for a model that is no file."""
    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _shown(rows: Iterable[dict[str, Any]], total: int, done: int, quiet: bool) -> Iterator[dict[str, Any]]:
    """The same rows, with a bar on a terminal and a line for each elsewhere; both on standard error."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    bar = Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                   transient=True, disable=quiet or not console.is_terminal)  # fmt: skip
    with bar:
        task = bar.add_task("judging", total=total, completed=done)
        for count, row in enumerate(rows, start=done + 1):
            yield row
            bar.advance(task)
            if not console.is_terminal:
                console.print(plain(f"{count}/{total} {row['picture']}: {len(row['objects'])} objects"), markup=False)


def _finish(folder: Path, document: dict[str, Any], as_json: bool) -> None:
    """Write the report and say what is in it."""
    from rich.console import Console
    from rich.table import Column, Table

    from detcam.evaluate.report import save

    if not document["objects"]:
        raise InputError(
            "no object matches a label (same class, box IoU over .5): check --labels and the class numbers"
        )
    paths = save(folder, document)
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    shown = [m for m in document["measures"] if m["name"] in HEADLINES or m["name"].endswith((" mass", " rank"))]
    heads = [f"{m['name'].replace('_', ' ')} {'↑' if m['better'] == 'higher' else '↓'}" for m in shown]
    # Words of headings stay whole; a name too long for what is left of the terminal goes on in the next line.
    columns = [Column(head, min_width=max(map(len, head.split()))) for head in heads]
    table = Table(Column(overflow="fold"), *columns, box=None, padding=(0, 1, 0, 0))
    for name, row in document["contenders"].items():
        means = [row[m["name"]]["mean"] for m in shown]
        table.add_row(name, *("-" if v is None else f"{v:.3f}" if abs(v) < 10 else f"{v:.3g}" for v in means))
    out = Console(highlight=False, soft_wrap=True)
    out.print(table, markup=False)
    for name in document["unchanged_by_randomised_weights"]:
        out.print(f"{name}: hardly changes when the weights are randomised: not to be trusted", markup=False)
    out.print(f"{document['objects']} objects in {document['pictures']} pictures. Open {paths[1]}", markup=False)
