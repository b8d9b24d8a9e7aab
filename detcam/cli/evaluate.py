"""`detcam evaluate`."""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from detcam.cli.console import console, counted, examples, progress
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import ConfigFlag, JsonFlag, PrintConfigFlag, TrustFlag, preset_of, with_preset_options
from detcam.config import Preset
from detcam.errors import InputError, plain

EPILOG = examples(
    "detcam evaluate --model yolov8n.pt --images photos --labels labels --out judged",
    "detcam evaluate --model yolov8n.pt --images photos --labels instances.json --methods odam,fused,drise --quick",
    "detcam evaluate --model yolov8n.pt --images photos --labels labels --methods odam,layercam --report",
    "detcam evaluate --config mine.yaml --images photos --labels labels",
    "detcam evaluate --model yolov8n.pt --images photos --labels labels --methods search,odam --protocol vps",
    "detcam evaluate --scenes 200 --family detr --out judged",
)
MAPS = "maps"  # folder of the maps that --report keeps
FEW = 3  # objects per image of a quick run: some methods take a backward through the whole model for each
HEADLINES = ("energy_in_mask", "odi", "deletion_blur", "insertion_blur", "randomised", "forwards")
PUBLISHED = ("deletion_protocol", "insertion_protocol")  # headlines in place of deletion and insertion


@with_preset_options(without=["method"])
def evaluate(
    images: Annotated[Path | None, typer.Option(help="Folder of images.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A COCO .json, or a folder of YOLO .txt files or of .png masks, named after the images."),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, help="Judge on this many drawn scenes of each kind instead, whose cause is known."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="With --scenes: rcnn, detr, semantic, or yolo (in a checkout). [default: rcnn]")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="all, or names separated by commas. [default: the preset's, or all]")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="level, evidence, stem, auto (a method's own) or module names, separated by commas. [default: the "
            "preset's, or level,evidence,auto]"
        ),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("detcam-evaluate"),
    quick: Annotated[bool, typer.Option("--quick", help="A shorter protocol: under 5 minutes on 2 cores.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")] = False,
    pictures: Annotated[int | None, typer.Option(min=1, help="Judge at most this many images.")] = None,
    objects: Annotated[
        int | None, typer.Option(min=1, help="Objects per image for deletion, insertion and stability. [default: 3]")
    ] = None,
    fills: Annotated[str, typer.Option(help="What hides pixels: blur, black, inpaint.")] = "blur",
    protocol: Annotated[
        str | None, typer.Option(help="Deletion and insertion as a paper has them: vps, vxcode, odexai.")
    ] = None,
    *,
    preset: Preset,
    config: ConfigFlag = None,
    print_config: PrintConfigFlag = False,
    trust_checkpoint: TrustFlag = False,
    report: Annotated[
        bool, typer.Option("--report", help="Keep the maps of all images, and write HTML pages of them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge heatmaps: where they point, whether the score follows them, whether they depend on the model.

    Compares every method at every layer, and baselines that ignore the model, on identical objects. Writes
    report.json, report.md, plots with confidence intervals, and a row for each image; --resume continues from these
    rows.
    """
    flags = preset.model_dump(exclude_unset=True)
    preset = preset_of(config, **flags)
    contenders = methods.split(",") if methods else _listed(preset.method, ["all"])
    places = layers.split(",") if layers else _listed(preset.layers, ["level", "evidence", "auto"])
    if print_config:
        print(_printed(preset, contenders, places), end="")
        return
    with interruptible(lambda: _written(out_dir)):
        if scenes is not None:
            given = {"images": images, "labels": labels, **({"config": config} if config else flags)}
            if needless := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
                raise InputError(f"--scenes brings its models, labels and options: leave out {', '.join(needless)}")
            if report or protocol:
                name = "--report" if report else "--protocol"
                raise InputError(f"{name} is for images: give --model, --images and --labels")
            count = 20 if quick else scenes
            document = _on_scenes(count, family or "rcnn", contenders, places, quick, out_dir, resume, as_json)
        elif family is not None:
            raise InputError("--family chooses the models of the planted scenes: give --scenes, too")
        elif "model" not in preset.model_fields_set or images is None or labels is None:
            raise InputError("evaluate: give --model, --images and --labels, or --scenes 200")
        else:
            document = _on_photographs(
                preset, trust_checkpoint, images, labels, contenders, places, quick, out_dir, resume, as_json,
                tuple(fills.split(",")), protocol, pictures, objects, report,
            )  # fmt: skip
        finish(out_dir, document, as_json)
        if report:
            from detcam.report import write_report

            page = write_report(out_dir / MAPS, labels=labels)
            console(quiet=as_json).print(plain(f"Maps: {page}"), markup=False)


def _listed(choice: str | list[str], otherwise: list[str]) -> list[str]:
    """The method or layers of a preset as a list; `otherwise` for "auto"."""
    return otherwise if choice == "auto" else [choice if isinstance(choice, str) else "+".join(choice)]


def _printed(preset: Preset, methods: list[str], layers: list[str]) -> str:
    """The options in force as a preset, without methods or layers where there are several: a preset has one of each."""
    left_out = {"method": methods == ["all"] or len(methods) > 1, "layers": len(layers) > 1}
    places = layers[0].split("+") if "+" in layers[0] else layers[0]
    return preset.updated(method=methods[0], layers=places).to_yaml(
        without=[name for name, several in left_out.items() if several]
    )


def _written(folder: Path) -> str:
    from detcam.evaluate.store import ROWS

    rows = len(list((folder / ROWS).glob("*.json")))
    return f"{counted(rows, 'image')} judged in {folder}: go on with --resume" if rows else NOTHING


def _on_photographs(
    preset: Preset, trust: bool, images: Path, labels: Path, methods: Sequence[str], layers: Sequence[str], quick: bool,
    folder: Path, resume: bool, quiet: bool, fills: tuple[str, ...], published: str | None, limit: int | None,
    objects: int | None, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    from detcam.engine.masking import FILLS
    from detcam.evaluate.contenders import contenders
    from detcam.evaluate.judge import Judge, Protocol, pictures
    from detcam.evaluate.labels.read import read_labels
    from detcam.evaluate.published import PROTOCOLS
    from detcam.evaluate.report import summarise
    from detcam.evaluate.store import Store
    from detcam.explanation import Explanation
    from detcam.models.load import load_model

    if wrong := [fill for fill in fills if fill not in FILLS]:
        raise InputError(f"fill {wrong[0]!r} does not exist: choose from {', '.join(FILLS)}")
    if published is not None and published not in PROTOCOLS:
        raise InputError(f"--protocol {published!r} does not exist: choose from {', '.join(PROTOCOLS)}")
    if published and fills != ("blur",):
        raise InputError("--protocol says what hides pixels: leave --fills out")
    protocol = Protocol.quick() if quick else Protocol()
    given = {"pictures": limit, "objects": objects}
    protocol = replace(protocol, fills=fills, published=published, **{k: v for k, v in given.items() if v is not None})
    if published and "conf" not in preset.model_fields_set:
        preset = preset.updated(conf=PROTOCOLS[published].conf)
    paths, truth = pictures(images, protocol), read_labels(labels)
    if quick:
        preset = preset.updated(max_det=min(preset.max_det, FEW))
    loaded, options = load_model(preset.model, trust), preset.options()
    for name in ("model", "method", "layers"):  # every contender has its own
        del options[name]
    taking_part, left_out = contenders(loaded, methods, layers, quick, **options)
    file = Path(preset.model)
    weights = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None
    settings = {
        **preset.model_dump(exclude={"method"}), "weights": weights,
        "images": str(images.resolve()), "pictures": len(paths), "of": len(pictures(images, Protocol())),
        "labels": str(labels.resolve()),
        "methods": list(methods), "layers": list(layers), "quick": quick, "report": keep, "protocol": asdict(protocol),
    }  # fmt: skip
    store = Store(folder, settings, resume)

    def keep_map(path: Path, name: str, explanation: Explanation) -> None:
        """A folder for each image, and in it a folder for each contender."""
        explanation.save(folder / MAPS / path.stem / name.replace(" @ ", "-"), path)

    judge = Judge(loaded, taking_part, truth, protocol, keep_map if keep else None, **options)
    done = store.done()
    for row in _shown(judge.rows(paths, done), len(paths), len(done), quiet):
        store.add(row)
    document = summarise(list(store.rows()), protocol.measures(), settings)
    said = {"published": {"name": published, **asdict(PROTOCOLS[published])}} if published else {}
    return {**document, "left_out": left_out, **said}


def _on_scenes(
    count: int, family: str, methods: Sequence[str], layers: Sequence[str], quick: bool, folder: Path, resume: bool,
    quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    from detcam.evaluate.planted import rows as scenes
    from detcam.evaluate.planted.interventions import FAMILIES
    from detcam.evaluate.report import summarise
    from detcam.evaluate.store import Store

    if family not in FAMILIES:
        raise InputError(f"--family {family!r} does not exist: choose from {', '.join(FAMILIES)}")
    settings = {"scenes": count, "family": family, "methods": list(methods), "layers": list(layers), "quick": quick}
    store = Store(folder, settings, resume)
    wanted, done, left_out = scenes.names(count), store.done(), dict[str, str]()
    rows = scenes.rows(wanted, methods, layers, left_out, quick, done, family)
    for row in _shown(rows, len(wanted), len(done), quiet):
        store.add(row)
    document = summarise(list(store.rows()), scenes.measures(), settings)
    return {**document, "left_out": left_out}


def _shown(rows: Iterable[dict[str, Any]], total: int, done: int, quiet: bool) -> Iterator[dict[str, Any]]:
    """The same rows, with progress on standard error: elsewhere than on a terminal a line for each row."""
    with progress(console(stderr=True), quiet, seconds=0) as bars:
        tell = bars("judging", total, done)
        for count, row in enumerate(rows, start=done + 1):
            yield row
            tell(count, line=plain(f"{count}/{total} {row['picture']}: {counted(len(row['objects']), 'object')}"))


def finish(folder: Path, document: dict[str, Any], as_json: bool) -> None:
    """Write the report and print its headlines."""
    from detcam.evaluate.report import save

    if not document["objects"]:
        raise InputError(
            "no object matches a label (same class, box IoU over 0.5): check --labels and the class numbers"
        )
    with warnings.catch_warnings(record=True) as caught:
        paths = save(folder, document)
    for warning in caught:
        print(f"warning: {plain(str(warning.message))}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    headlines, parts = {*HEADLINES, *PUBLISHED}, (" mass", " rank")
    shown = [m for m in document["measures"] if m["name"] in headlines or m["name"].endswith(parts)]
    heads = [f"{m['name'].replace('_', ' ')} {'↑' if m['better'] == 'higher' else '↓'}" for m in shown]
    # Words of headings stay whole; a name that is too long for the rest of the line is folded.
    columns = [Column(head, min_width=max(map(len, head.split()))) for head in heads]
    table = Table(Column(overflow="fold"), *columns, box=None, padding=(0, 1, 0, 0))
    for name, row in document["contenders"].items():
        means = [row[m["name"]]["mean"] for m in shown]
        table.add_row(name, *("-" if v is None else f"{v:.3f}" if abs(v) < 10 else f"{v:.3g}" for v in means))
    out = console()
    out.print(table, markup=False)
    for name in document["unchanged_by_randomised_weights"]:
        out.print(f"{name}: hardly changes when the weights are randomised: do not trust it", markup=False)
    settings = document["settings"]
    if settings["quick"]:
        some = settings.get("pictures", document["pictures"])
        out.print(f"--quick judged {some} of {settings.get('of', some)} images: a first impression", markup=False)
    out.print(f"{document['objects']} objects in {document['pictures']} images. Open {paths[1]}", markup=False)
