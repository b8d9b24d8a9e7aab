"""`detcam batch`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import (
    AdapterFlag,
    ConfFlag,
    ConfigFlag,
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
    preset_of,
)
from detcam.errors import InputError, nearest, plain

if TYPE_CHECKING:
    from detcam.batch.items import Source
    from detcam.batch.job import Tally
    from detcam.batch.worker import Engine, Options

EPILOG = """
Examples:

`detcam batch photos --model yolov8n.pt --out heat`

`detcam batch photos --model yolov8n.pt --dry-run`

`detcam batch instances_val2017.json --root val2017 --model yolov8n.pt --out heat --resume`

`detcam batch s3://bucket/train-{000..099}.tar --model yolov8n.pt --out s3://bucket/heat --engine ray`

The results are Parquet files: objects/ and pictures/ in --out. `detcam.batch.load(DIR)` gives explanations.
"""
ENGINES = ("local", "ray")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EPILOG)(batch)


def batch(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC",
            help="Folder, glob, .txt list, COCO .json, .parquet or WebDataset .tar; here or at a URL (s3://...).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", help="Folder or URL for the dataset.")] = "detcam-batch",
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
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1. [default: every GPU, or the CPU without any]")
    ] = None,
    config: ConfigFlag = None,
    print_config: PrintConfigFlag = False,
    metrics: Annotated[
        str | None,
        typer.Option(help="More columns: pointing_box, energy_in_box_per_area, compactness, complexity."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. [default: one for each GPU, or each core]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each worker. [default: the cores shared out among them]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster. [default: one started here]")] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Pictures per shard. [default: by their number, 8 to 512]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job that --out holds.")] = False,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Stop when more pictures than these failed. [default: never]")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: do the pictures that failed again, too.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds until a picture that hangs is given up; 0: never.")
    ] = 600.0,
    root: Annotated[str | None, typer.Option(help="Folder of the pictures that a list or COCO file names.")] = None,
    column: Annotated[str | None, typer.Option(help="Pictures' column of a Parquet file, or suffix in a tar.")] = None,
    key: Annotated[str | None, typer.Option(help="Keys' column of a Parquet file.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Allow http(s) URLs.")] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also what detcam explain writes, for each picture.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="The same, and pages to look at.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, try a few pictures, print the time and size to expect.")
    ] = False,
    trust_checkpoint: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain every object of every picture of a set, into a dataset of Parquet files.

    A row for each object with its box, score and heatmap, and a row for each picture, which says why if it could not
    be read. A job that was stopped or killed goes on with --resume and gives the same dataset.
    """
    from detcam.batch.sources.open import open_source
    from detcam.batch.worker import Options

    preset = preset_of(
        config, model=model, method=method, layers=layers, target=target, segments=segments, text=text, adapter=adapter,
        conf=conf, iou=iou, max_det=max_det, imgsz=imgsz, device=device,
    )  # fmt: skip
    if print_config:
        print(preset.to_yaml(), end="")
        return
    if source is None:
        raise InputError("SRC: give the pictures, e.g. detcam batch photos")
    columns = tuple(metrics.split(",")) if metrics else ()
    options = Options(**preset.model_dump(), metrics=columns, trust_checkpoint=trust_checkpoint)
    place = options.device
    runs = _engine(engine, out, address, workers, threads, place, timeout)
    opened = open_source(source, root=root, column=column, key=key, web=web)
    if dry_run:
        _estimate(opened, options, chunk, (workers, threads, place), as_json)
        return
    limits = {
        "chunk": chunk, "resume": resume, "max_errors": max_errors, "retry_errors": retry_errors,
        "save": overlays or report,
    }  # fmt: skip
    _run(opened, out, options, runs, limits, report, as_json)


def _engine(
    name: str,
    out: str,
    address: str | None,
    workers: int | None,
    threads: int | None,
    device: str | None,
    timeout: float,
) -> Engine:
    if name == "local":
        from detcam.batch.engines.local import LocalEngine

        if address is not None:
            raise InputError("--address is of a Ray cluster: add --engine ray")
        return LocalEngine(workers, threads, device, timeout)
    if name == "ray":
        from detcam.batch.engines.ray import RayEngine

        return RayEngine(workers, threads, device, address, out, timeout)
    raise InputError(f"engine {name!r} does not exist: {nearest(name, ENGINES)}")


def _estimate(
    source: Source,
    options: Options,
    chunk: int | None,
    shares: tuple[int | None, int | None, str | None],
    as_json: bool,
) -> None:
    from detcam.batch.engines.local import LocalEngine
    from detcam.batch.estimate import estimate
    from detcam.batch.job import chunk_size
    from detcam.cli.console import sentences

    engine = LocalEngine(*shares)
    size = chunk or chunk_size(source.count())
    expected = estimate(source, options, size, engine.workers, engine.threads, engine.device(0))
    if as_json:
        print(json.dumps(asdict(expected), indent=2, ensure_ascii=False))
        return
    for line in sentences(expected):
        typer.echo(plain(line))


def _run(
    source: Source, out: str, options: Options, engine: Engine, limits: dict[str, Any], report: bool, as_json: bool
) -> None:
    from detcam.batch.job import run
    from detcam.cli.console import progress, summary

    last: list[Tally] = []

    def written() -> str:
        return f"{last[0].done} of {last[0].total} pictures are done in {out}: go on with --resume" if last else NOTHING

    with interruptible(written), progress(quiet=as_json) as told:

        def tell(tally: Tally) -> None:
            last[:] = [tally]
            told(tally)

        tally = run(source, out, options, engine, progress=tell, **limits)
    page = _report(out) if report else None
    if as_json:
        print(json.dumps({**asdict(tally), "out": out, "seconds": tally.seconds}, indent=2, ensure_ascii=False))
        return
    for line in summary(tally, out, page):
        typer.echo(plain(line))


def _report(out: str) -> Path:
    from detcam.batch.dataset.dataset import SAVED
    from detcam.report import write_report

    saved = Path(out) / SAVED
    with interruptible(lambda: f"all pictures are done in {out}: detcam report {saved} writes the pages"):
        return write_report(saved)
