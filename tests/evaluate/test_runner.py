"""The judge from end to end, on drawn scenes and the demo model: rows, resume, report, and the command."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import NIGHTLY

from benchmarks.training.yolo_dataset import write_dataset
from detcam import Explainer, cli, zoo
from detcam.boxes import box_iou
from detcam.cli.evaluate import finish
from detcam.engine import masking
from detcam.errors import InputError, MethodError
from detcam.evaluate.contenders import BASELINES, Contender, Sweep, contenders, hastened
from detcam.evaluate.judge import Judge, Protocol, pictures
from detcam.evaluate.labels.read import read_labels
from detcam.evaluate.plots import draw
from detcam.evaluate.report import collect, markdown, save, summarise
from detcam.evaluate.store import Store
from detcam.images import read_image
from detcam.methods import get_method
from detcam.runners.likeness import Likeness
from detcam.scenes import HELD_OUT_SEED

SMALL = Protocol(objects=2, steps=3, stages=1, stability=1)
OPTIONS: dict[str, Any] = {"imgsz": 160}
TIMES = ("seconds", "forwards")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three held-out scenes as pictures with YOLO-seg labels."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, train=(), val=[HELD_OUT_SEED + i for i in (0, 3, 4)], size=(240, 320), workers=1)
    return folder


@pytest.fixture(scope="module")
def judged(scenes: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of odam and the baselines, and the contenders' names."""
    model = zoo.load("scenes-yolo")
    found, _ = contenders(model, ["odam"], ["level"], **OPTIONS)

    def broken(image: Any) -> Any:
        raise MethodError("broken: on purpose")

    everyone = [*found, Contender("broken", broken), Contender("expensive", found[0].explain, frozenset({"none.jpg"}))]
    judge = Judge(model, everyone, read_labels(scenes / "labels" / "val"), SMALL, **OPTIONS)
    torch.set_num_threads(1)
    return list(judge.rows(pictures(scenes / "images" / "val", SMALL))), [c.name for c in found]


def test_rows_judge_all_contenders_on_identical_objects(judged: tuple[list[dict[str, Any]], list[str]]) -> None:
    rows, names = judged
    assert names == [*BASELINES, "odam @ level"]
    assert len(rows) == 3
    measures = {m.name for m in SMALL.measures()}
    assert sum(len(row["objects"]) for row in rows) > 6
    for place, row in enumerate(rows):
        assert row["failed"] == {"broken": "broken: on purpose"}
        assert ("cascade" in row) == (place == 0)
        for number, entry in enumerate(row["objects"]):
            assert list(entry["maps"]) == names
            assert entry["iou"] > 0.5
            for values in entry["maps"].values():
                assert set(values) <= measures
                assert ("deletion_blur" in values) == (number < SMALL.objects)
                assert all(isinstance(v, float) and v == v for v in values.values())
    json.dumps(rows, allow_nan=False)


def test_rows_hold_what_the_metrics_say(judged: tuple[list[dict[str, Any]], list[str]], scenes: Path) -> None:
    """One object again, by hand from the explanation."""
    row = judged[0][1]
    path = scenes / "images" / "val" / row["picture"]
    explainer = Explainer(zoo.load("scenes-yolo"), "odam", "level", **OPTIONS)
    image = read_image(path)
    explanation = explainer(image)
    best = int(explanation.scores.argmax())
    entry = row["objects"][0]
    assert entry["score"] == pytest.approx(float(explanation.scores[best]), abs=1e-4)
    heat = explanation.heatmaps[best].numpy()
    labels = read_labels(scenes / "labels" / "val").of(path, *image.shape[:2])
    own = max(
        (label for label in labels if label.is_of(int(explanation.class_ids[best]), "")),
        key=lambda label: float(box_iou(explanation.boxes[best : best + 1], torch.tensor(label.box)[None].float())),
    )
    assert own.mask is not None
    assert entry["maps"]["odam @ level"]["energy_in_mask"] == pytest.approx(heat[own.mask].sum() / heat.sum(), abs=1e-4)
    picture, geometry = explainer.adapter.prepare(image)
    inside = masking.seen(geometry, picture.device)
    hot = masking.places(masking.network_heat([explanation.maps[best]], explanation.geometry.network), inside)[0]
    score = Likeness(explainer.adapter, explanation.objects, 300)
    hide = masking.fill("blur", picture, picture)
    curve = []
    for share in (0, 1 / 9, 4 / 9, 1):
        hidden = (hot < round(share * int(inside.sum()))) & inside
        curve.append(float(score(hide(hidden[None]), torch.tensor([best]))))
    area = sum((curve[i] + curve[i + 1]) / 2 * w for i, w in enumerate((1 / 9, 3 / 9, 5 / 9)))
    assert entry["maps"]["odam @ level"]["deletion_blur"] == pytest.approx(area / curve[0], abs=2e-3)
    assert entry["maps"]["odam @ level"]["deletion_raw_blur"] == pytest.approx(area, abs=2e-3)


def test_the_report(judged: tuple[list[dict[str, Any]], list[str]]) -> None:
    rows, names = judged
    rows = [{**row, "picture": f"{time} {row['picture']}"} for time in range(5) for row in rows]  # enough for intervals
    document = summarise(rows, SMALL.measures(), {"model": "scenes-yolo"})
    assert list(document["contenders"]) == names
    assert document["reference"] == "odam @ level"
    objects = [entry["maps"]["odam @ level"] for row in rows for entry in row["objects"]]
    assert document["objects"] == len(objects)
    cell = document["contenders"]["odam @ level"]["energy_in_mask"]
    assert cell["mean"] == pytest.approx(np.mean([o["energy_in_mask"] for o in objects]), abs=1e-4)
    assert cell["low"] < cell["mean"] < cell["high"]
    few = [o["deletion_blur"] for o in objects if "deletion_blur" in o]
    assert document["contenders"]["odam @ level"]["deletion_blur"]["count"] == len(few)
    difference = document["differences"]["noise"]["energy_in_mask"]
    expected = [
        e["maps"]["noise"]["energy_in_mask"] - e["maps"]["odam @ level"]["energy_in_mask"]
        for row in rows
        for e in row["objects"]
    ]
    assert difference["mean"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert difference["high"] < 0
    assert {"noise", "box", "gaussian"} <= set(document["unchanged_by_randomised_weights"])
    assert document["failed"]["broken"][0].endswith("broken: on purpose")
    results = collect(rows, SMALL.measures())
    in_mask = next(m for m in SMALL.measures() if m.name == "energy_in_mask")
    assert (results.wins("odam @ level", "noise", in_mask), results.wins("noise", "odam @ level", in_mask)) == (1, -1)
    page = markdown(document)
    assert "| odam @ level |" in page
    assert "Not to be trusted as explanations" in page
    measured = next(m for m in document["measures"] if m["name"] == "deletion_blur")
    assert (measured["objects"], measured["pictures"]) == (len(few), len(rows))
    assert f"| objects, images | {len(few)}, {len(rows)} |" in page


def test_few_images_and_baselines_get_no_verdict(judged: tuple[list[dict[str, Any]], list[str]]) -> None:
    rows = copy.deepcopy(judged[0])
    for entry in (entry for row in rows for entry in row["objects"]):
        entry["maps"]["better"] = {name: value + 1 for name, value in entry["maps"]["odam @ level"].items()}
    document = summarise(rows, SMALL.measures(), {"model": "scenes-yolo"})
    assert all(cell["low"] is None for row in document["contenders"].values() for cell in row.values())
    many = [{**row, "picture": f"{time} {row['picture']}"} for time in range(5) for row in rows]
    for page in (markdown(document), markdown(summarise(many, SMALL.measures(), {"model": "scenes-yolo"}))):
        differences = page.partition("## Differences")[2]
        noise = [line for line in differences.splitlines() if line.startswith(("| noise", "| gaussian"))]
        assert noise
        assert not any(cell.endswith((" +", " -")) for line in noise for cell in line.split(" | "))
    better = "\n".join(line for line in differences.splitlines() if line.startswith("| better"))
    assert " + |" in better, "the others are marked"


def arguments(scenes: Path, out: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--model", "scenes-yolo", "--images", str(scenes / "images" / "val"), "--labels",
        str(scenes / "labels" / "val"), "--methods", "odam", "--layers", "level", "--imgsz", "160", "--quick", "--pictures", "2",
        "--out", str(out), *more,
    ]  # fmt: skip


def without_times(store: Path) -> list[Any]:
    rows = list(Store(store, json.loads((store / "settings.json").read_text()), resume=True).rows())
    for entry in (entry for row in rows for entry in row["objects"]):
        for values in entry["maps"].values():
            for name in TIMES:
                values.pop(name)
    return rows


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the command, with --report; plots, which take seconds, in the nightly tier only."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        if not NIGHTLY:
            patched.setattr("detcam.evaluate.report.draw", lambda *_: [])
        assert cli.run(arguments(scenes, out, "--report")) == 0
    return out


def test_the_files_of_a_run(finished: Path) -> None:
    document = json.loads((finished / "report.json").read_text())
    assert document["pictures"] == 2
    assert markdown(document) == (finished / "report.md").read_text()
    assert (finished / "intervals.png").exists() == NIGHTLY


def test_the_plots(judged: tuple[list[dict[str, Any]], list[str]], tmp_path: Path) -> None:
    document = summarise(judged[0], SMALL.measures()[: None if NIGHTLY else 3], {"model": "scenes-yolo"})
    paths = draw(tmp_path, document)
    assert [path.name for path in paths] == ["intervals.png", "agreement.png"]
    for path in paths:
        assert read_image(path).std() > 5


@pytest.mark.nightly
def test_a_killed_run_goes_on(
    finished: Path, scenes: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first row, with a half-written row beside it: the same rows as without a stop."""
    add = Store.add

    def once(self: Store, row: dict[str, Any]) -> None:
        if self.done():
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr("detcam.evaluate.report.draw", lambda *_: [])
    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", once)
        assert cli.run(arguments(scenes, tmp_path)) == 130
    (tmp_path / "rows" / ".x.json.part").write_text("{")
    assert len(list((tmp_path / "rows").glob("*.json"))) == 1
    assert cli.run(arguments(scenes, tmp_path, "--resume", "--conf", "0.5")) == 2
    assert "conf was 0.25, now 0.5" in capsys.readouterr().err
    assert cli.run(arguments(scenes, tmp_path, "--resume")) == 0
    out = capsys.readouterr()
    assert "2/2" in out.err  # plain lines, for this is not a terminal
    assert "odam @ level" in out.out
    assert without_times(tmp_path) == without_times(finished)
    assert {p.name for p in tmp_path.iterdir()} >= {"report.json", "report.md", "settings.json"}


def test_pages_of_the_judged_maps(finished: Path, scenes: Path, capsys: Any) -> None:
    """--report keeps every contender's maps: those of a plain explanation, side by side in the page of an image."""
    path = sorted((scenes / "images" / "val").iterdir())[0]
    folder = finished / "maps" / path.stem
    assert {f.name for f in folder.iterdir() if f.is_dir()} == {"odam-level", *BASELINES}
    plain = Explainer("scenes-yolo", "odam", "level", **OPTIONS, max_det=3)(path)
    with np.load(folder / "odam-level" / "heatmaps.npz") as kept:
        np.testing.assert_allclose(kept["heatmaps"], plain.heatmaps.numpy(), atol=1e-5)
    page = next(folder.rglob("report.html")).read_text()
    assert all(f'"{name}"' in page for name in BASELINES)
    assert (finished / "maps" / "looks.html").exists()
    assert cli.run(["evaluate", "--scenes", "1", "--report"]) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--fills", "pink"], "fill 'pink' does not exist"),
        (["--methods", "odamm"], "did you mean 'odam'"),
        (["--scenes", "3"], "leave out --images, --labels, --model, "),
        (["--family", "detr"], "give --scenes, too"),
        (["--images", "nowhere"], "not a folder with images"),
        (["--labels", "nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_usage_is_one_line(more: list[str], reason: str, scenes: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.run(arguments(scenes, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.nightly
def test_a_count_decides_which_contenders_are_expensive(scenes: Path) -> None:
    """A sweep's length, known beforehand: masks, or samples with a backward for each object, but never the clock."""
    model = zoo.load("scenes-yolo")
    options = {**OPTIONS, "max_det": 3}
    found, _ = contenders(model, ["odam", "drise", "smoothgrad"], ["level"], quick=True, **options)
    named = {c.name: c for c in found}
    protocol = replace(SMALL, pictures=1, expensive=23)
    judge = Judge(model, found, read_labels(scenes / "labels" / "val"), protocol, **options)
    row = next(judge.rows(pictures(scenes / "images" / "val", protocol)))
    objects = len(Explainer(model, "box", **options)(scenes / "images" / "val" / row["picture"]))
    assert objects == 3
    passes = {name: named[name].sweep.passes(objects) for name in named}
    assert {name: passes[name] for name in ("odam @ level", "drise", "smoothgrad")} == {
        "odam @ level": 0, "drise": 24, "smoothgrad": 2 * (1 + objects),
    }  # fmt: skip
    assert set(row["cascade"]) == set(named) - {"drise"}


def test_passes_of_a_sweep_are_its_longest_progress() -> None:
    masks, samples = Sweep(), Sweep(backwards=True)
    for sweep in (masks, samples):
        sweep(1, 24)
        sweep(1, 8)
    assert (masks.passes(3), samples.passes(3)) == (24, 24 * (1 + 3))


def test_the_command_needs_pictures_or_scenes(capsys: Any) -> None:
    assert cli.run(["evaluate", "--model", "scenes-yolo"]) == 2
    assert "--scenes 200" in capsys.readouterr().err


def test_a_method_is_judged_at_its_own_layers_once() -> None:
    found, _ = contenders(zoo.load("scenes-yolo"), ["odam", "layerig"], ["level", "auto"], **OPTIONS)
    names = [contender.name for contender in found if " @ " in contender.name]
    assert names == ["odam @ level", "layerig @ level", "layerig @ stem"]


def test_who_takes_part() -> None:
    model = zoo.load("scenes-yolo")
    found, left_out = contenders(model, ["odam", "fused", "drise", "scorecam"], ["level", "model.9"], quick=True)
    names = [c.name for c in found]
    assert names == [*BASELINES, "odam @ level", "odam @ model.9", "fused", "drise"]
    assert set(left_out) == {"scorecam @ level", "scorecam @ model.9"}
    quick = next(c.explain for c in found if c.name == "drise")
    assert isinstance(quick, Explainer)
    assert quick.method.masks < 1000  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="does not exist"):
        contenders(model, ["nothing"], ["level"])


def test_a_quick_wrapper_keeps_its_method() -> None:
    quick = hastened(get_method("noisy:gradcam"))
    assert (quick.name, quick.samples) == ("noisy:gradcam", 2)  # type: ignore[attr-defined]


def test_without_matplotlib_the_report_is_written(
    judged: tuple[list[dict[str, Any]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = summarise(judged[0], SMALL.measures(), {"model": "scenes-yolo", "quick": True})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r'no plots: plots need matplotlib: pip install "detcam\[evaluate\]"'):
        paths = save(tmp_path, document)
    assert [path.name for path in paths] == ["report.json", "report.md"]
    assert all(path.exists() for path in paths)
    finish(tmp_path, document, as_json=True)
    assert capsys.readouterr().err.startswith("warning: the report has no plots: ")
