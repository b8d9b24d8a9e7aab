"""`detcam batch`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detcam.cli.batch_summary import sentences, state, summary
from detcam.cli.console import console, examples, log_lines, progress
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import JsonFlag, TrustFlag, require_model, with_preset_options
from detcam.config import Preset
from detcam.errors import InputError, nearest, plain

if TYPE_CHECKING:
    from detcam.batch.items import Source
    from detcam.batch.job import Tally
    from detcam.batch.worker import Engine, Options

EPILOG = examples(
    "detcam batch photos --model yolov8n.pt --out heat",
    "detcam batch photos --model yolov8n.pt --dry-run",
    "detcam batch instances_val2017.json --root val2017 --model yolov8n.pt --out heat --resume",
    "detcam batch s3://bucket/train-{000..099}.tar --model yolov8n.pt --out s3://bucket/heat --engine ray",
    more="The results are Parquet files: objects/ and pictures/ in --out. `detcam.batch.load(DIR)` gives explanations.",
)
ENGINES = ("local", "ray")
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
Shares = tuple[int | None, int | None, str | None]  # workers, threads of each, device


@with_preset_options(device="Device, such as cpu, cuda or cuda:1. [default: all GPUs, or the CPU if there is none]")
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
    *,
    preset: Preset,
    metrics: Annotated[
        str | None, typer.Option(help="More columns: pointing_box, energy_in_box_per_area, compactness, complexity.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. [default: one for each GPU, or each core]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each worker. [default: an equal share of the cores]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster. [default: a cluster started here]")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images per shard. [default: 8 to 512, by the number of images]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the job that --out holds.")] = False,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Stop when more images than this failed. [default: never]")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: also try again the images that failed.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds after which an image that hangs is given up; 0: never.")
    ] = 600.0,
    root: Annotated[str | None, typer.Option(help="Folder of the images that a list or COCO file names.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the images in Parquet, or their suffix in tar.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of the keys in Parquet.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Allow http(s) URLs.")] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write the output of detcam explain for each image.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="The same, and HTML pages.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, try a few images, and print the expected time and size.")
    ] = False,
    trust_checkpoint: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain every object of every image of a set, into a dataset of Parquet files.

    There is a row for each object with its box, score and heatmap, and a row for each image, with the reason if it
    could not be read. A job that was stopped or killed continues with --resume and gives the same dataset.
    """
    from detcam.batch.job import run
    from detcam.batch.sources.open import open_source
    from detcam.batch.worker import Options

    if source is None:
        raise InputError("SRC: give the images, e.g. detcam batch photos --model yolov8n.pt")
    require_model(preset)
    columns = tuple(metrics.split(",")) if metrics else ()
    options = Options(**preset.model_dump(), metrics=columns, trust_checkpoint=trust_checkpoint)
    shares = workers, threads, options.device
    runs = _engine(engine, shares, address, out, timeout)
    opened = open_source(source, root=root, column=column, key=key, web=web)
    if dry_run:
        _estimate(opened, options, chunk, shares, as_json)
        return
    save = overlays or report
    job = partial(run, opened, out, options, runs, chunk, resume, save, max_errors, retry_errors)
    _run(job, out, report, as_json)


def _engine(name: str, shares: Shares, address: str | None, out: str, timeout: float) -> Engine:
    if name == "local":
        from detcam.batch.engines.local import LocalEngine

        if address is not None:
            raise InputError("--address is the address of a Ray cluster: add --engine ray")
        return LocalEngine(*shares, timeout)
    if name == "ray":
        from detcam.batch.engines.ray import RayEngine

        return RayEngine(*shares, address, out, timeout)
    raise InputError(f"engine {name!r} does not exist: {nearest(name, ENGINES)}")


def _estimate(source: Source, options: Options, chunk: int | None, shares: Shares, as_json: bool) -> None:
    from detcam.batch.engines.local import LocalEngine
    from detcam.batch.estimate import estimate
    from detcam.batch.job import chunk_size

    engine = LocalEngine(*shares)
    size = chunk or chunk_size(source.count())
    expected = estimate(source, options, size, engine.workers, engine.threads, engine.device(0))
    if as_json:
        print(json.dumps(asdict(expected), indent=2, ensure_ascii=False))
        return
    for line in sentences(expected):
        typer.echo(plain(line))


def _run(job: Callable[..., Tally], out: str, report: bool, as_json: bool) -> None:
    last: list[Tally] = []

    def written() -> str:
        return f"{last[0].done} of {last[0].total} images are done in {out}: go on with --resume" if last else NOTHING

    screen = console(stderr=True)
    with (
        interruptible(written),
        log_lines(screen, "detcam.batch"),
        progress(screen, as_json, LINE_SECONDS, at_once=True, remaining=False) as bars,
    ):
        tell = bars("explaining")

        def progressed(tally: Tally) -> None:
            last[:] = [tally]
            line = f"{tally.done} of {tally.total} images, {state(tally)}"
            tell(tally.done, tally.total, state(tally), line)

        tally = job(progress=progressed)
    page = None
    if report:
        from detcam.batch.dataset.dataset import SAVED
        from detcam.report import write_report

        saved = Path(out) / SAVED
        with interruptible(lambda: f"all images are done in {out}: detcam report {saved} writes the pages"):
            page = write_report(saved)
    if as_json:
        print(json.dumps({**asdict(tally), "out": out, "seconds": tally.seconds}, indent=2, ensure_ascii=False))
        return
    for line in summary(tally, out, page):
        typer.echo(plain(line))
