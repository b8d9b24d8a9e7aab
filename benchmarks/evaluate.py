"""Evaluation on labelled images: every method at both presets of layers, baselines, and the contenders of `rivals.py`.

The main methods take part in all images, the others in the first --rest, and methods that sweep forwards in the first
--expensive; differences are taken on identical objects. With --scenes the images are drawn instead of read; the demo
models of the other families, "scenes-detr" and "scenes-semantic", are judged by the same command.

Rows go to --rows, a file per image, with report.md, which has all measures; the same command resumes after a stop. The
summary, which has the measures of docs/evaluation.md, goes to --out.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rivals import rivals
from summaries import intervals, write
from training.yolo_dataset import write_dataset

from detcam.evaluate.contenders import BASELINES, Contender, contenders
from detcam.evaluate.judge import Judge, Protocol, pictures
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.metrics.faithfulness import STEPS
from detcam.evaluate.metrics.stability import STAGES
from detcam.evaluate.plots import draw
from detcam.evaluate.report import Results, collect, markdown, summarise
from detcam.evaluate.store import Store
from detcam.explainer import Explainer
from detcam.methods import METHODS, SweepMethod
from detcam.models.load import load_model
from detcam.scenes import HELD_OUT_SEED

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "benchmarks" / "results" / "evaluate_coco64.json"
CANDIDATES = (
    "fused", "odam @ evidence", "odam @ level", "rectified x level", "rectified @ evidence", "level + 5 % around",
    "level + 5 % evidence", "layercam @ level", "gradcam @ level", "attention", "samplingpoints", "relevance",
    "odam @ level, margin", "odam @ evidence, margin", "odam @ level, prob", "odam @ evidence, prob",
)  # fmt: skip
RIVALS = ("odam @ level", "odam @ evidence", "ultralytics layercam", "drise", "level blurred", "gaussian")
HEADLINES = (
    "pointing_mask", "energy_in_mask", "odi", "insertion_blur", "deletion_blur", "minimal_subset_blur", "randomised",
    "forwards",
)  # fmt: skip
DECIDING = ("insertion_blur", "deletion_blur", "minimal_subset_blur", "energy_in_mask", "odi")
SETTINGS = (
    "scenes", "imgsz", "max_det", "pictures", "objects", "fills", "steps", "stability", "stages", "rest", "expensive",
    "masks", "targets", "shuffled", "without",
)  # fmt: skip
MAIN = ("odam", "layercam", "gradcam", "fused", "attention", "rollout", "relevance", "samplingpoints")
LAYERS = ("level", "evidence")


def taking_part(args: argparse.Namespace, paths: list[Path]) -> tuple[list[Contender], dict[str, str]]:
    """All contenders, and the reasons of those left out; expensive and minor methods take the first images only."""
    options = {"imgsz": args.imgsz, "max_det": args.max_det}
    model = load_model(args.weights)
    names = [name for name in METHODS if name not in ("captum", *args.without)]
    ours, left_out = contenders(model, names, LAYERS, **options)
    left_out |= dict.fromkeys(args.without, "left out by --without")
    result = rivals(model, ours, args.shuffled, **options)
    for target in args.targets:
        others, _ = contenders(model, ["odam"], LAYERS, target=target, **options)
        result += [replace(c, name=f"{c.name}, {target}") for c in others if c.name not in BASELINES]
    some, few = (frozenset(path.name for path in paths[:count]) for count in (args.rest, args.expensive))
    for contender in ours:
        name = contender.name.split(" @ ")[0]
        if "masks" in METHODS[name].parameters():
            method = METHODS[name](masks=args.masks)
            explain = Explainer(model, method, progress=contender.sweep, **options)
            contender = replace(contender, explain=explain)
        only = few if expensive(name) else None if name in (*MAIN, *BASELINES) else some
        result.append(replace(contender, only=only))
    return result, left_out


def expensive(name: str) -> bool:
    """Whether a method takes many forwards or backwards per image."""
    return issubclass(METHODS[name], SweepMethod) and name not in BASELINES


def duels(results: Results, protocol: Protocol) -> dict[str, Any]:
    """The differences that decide about a new default: mean and interval on identical objects, 1 for a win."""
    known = {m.name: m for m in protocol.measures()}
    wanted = [known[name] for name in DECIDING if name in known]
    return {
        f"{name} - {rival}": {
            m.name: {**asdict(results.difference(name, rival, m.name)), "wins": results.wins(name, rival, m)}
            for m in wanted
        }
        for name in CANDIDATES
        for rival in (*RIVALS, f"shuffled {name}")
        if name != rival and {name, rival} <= set(results.names)
    }


def headlines(document: dict[str, Any]) -> str:
    """The table of docs/evaluation.md, and the duels."""
    lines = [
        f"{document['objects']} objects in {document['pictures']} images",
        "",
        "| | " + " | ".join(HEADLINES) + " |",
        "|---" * (len(HEADLINES) + 1) + "|",
    ]
    for name, row in document["contenders"].items():
        cells = []
        for key in HEADLINES:
            cell = row.get(key, {"mean": None})
            interval = f" [{cell['low']:.2f}, {cell['high']:.2f}]" if cell.get("low") is not None else ""
            cells.append("-" if cell["mean"] is None else f"{cell['mean']:.2f}{interval}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| on identical objects | " + " | ".join(DECIDING) + " |", "|---" * (len(DECIDING) + 1) + "|"]
    for pair, row in document["duels"].items():
        cells = [
            f"{c['mean']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}] {'-=+'[c['wins'] + 1]}"
            for c in (row[key] for key in DECIDING if key in row)
        ]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(args: argparse.Namespace, protocol: Protocol, rows: list[dict[str, Any]], left_out: dict[str, str]) -> None:
    """Write the full report beside the rows, and the summary under the model's name into --out."""
    settings = {key: getattr(args, key) for key in SETTINGS}
    document = summarise(rows, protocol.measures(), {**settings, "weights": Path(args.weights).name})
    document["left_out"] = left_out
    args.rows.joinpath("report.md").write_text(markdown(document))
    draw(args.rows, document)
    document["duels"] = duels(collect(rows, protocol.measures()), protocol)
    document["command"] = f"python benchmarks/evaluate.py --weights {Path(args.weights).name} " + " ".join(
        f"--{key} {' '.join(map(_quoted, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if value not in (None, [])
    )
    print(headlines(document))
    report = json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "evaluate", "runs": {}}
    report["runs"][Path(args.weights).stem] = summarised(document)
    write(args.out, report)


def summarised(document: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run, with the headline measures of each contender and the duels as [mean, low, high, count]."""
    facts = ("command", "date", "versions", "settings", "pictures", "objects", "intervals")
    return {
        **{key: document[key] for key in facts},
        "contenders": intervals(document["contenders"], HEADLINES),
        "duels": intervals(document["duels"], DECIDING),
        "unchanged_by_randomised_weights": document["unchanged_by_randomised_weights"],
        "left_out": document.get("left_out", {}),
        "failed": {name: why if isinstance(why, int) else len(why) for name, why in document["failed"].items()},
    }


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a file, or the name of a demo model")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--scenes", type=int, help="draw this many held-out scenes instead")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--max_det", type=int, default=300, help="most objects per image")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--fills", nargs="+", default=["blur"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stability", type=int, default=8)
    parser.add_argument("--stages", type=int, default=STAGES, help="of the cascade of randomised weights")
    parser.add_argument("--targets", nargs="+", default=[], help="more scalars for odam to explain")
    parser.add_argument("--shuffled", nargs="+", default=["odam @ level", "rectified @ evidence"],
                        help="contenders to add with shuffled weights")  # fmt: skip
    parser.add_argument("--without", nargs="+", default=[], help="methods to leave out")
    parser.add_argument("--masks", type=int, default=300, help="of methods that mask at random")
    parser.add_argument("--rest", type=int, default=16, help="images for methods beside the main ones")
    parser.add_argument("--expensive", type=int, default=4, help="images for methods that sweep forwards")
    args = parser.parse_args()
    if args.scenes:
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + args.scenes)
        data = write_dataset(args.rows / "drawn", [], seeds).parent
        args.images, args.labels = data / "images" / "val", data / "labels" / "val"
    protocol = Protocol(args.pictures, args.objects, tuple(args.fills), args.steps, args.stages, args.stability)
    paths = pictures(args.images, protocol)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("rows", "out")}
    store = Store(args.rows, settings, resume=True)
    everyone, left_out = taking_part(args, paths)
    judge = Judge(
        load_model(args.weights), everyone, read_labels(args.labels), protocol, imgsz=args.imgsz, max_det=args.max_det
    )
    done = store.done()
    for row in track(judge.rows(paths, done), "judging", len(paths) - len(done), console=Console(width=120)):
        store.add(row)
    summary(args, protocol, list(store.rows()), left_out)


if __name__ == "__main__":
    main()
