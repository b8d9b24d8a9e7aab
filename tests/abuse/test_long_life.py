"""Many calls, many threads, calls inside the user's training, and interrupts at any moment."""

import _thread
import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from soak import state
from support import NIGHTLY, fingerprint, heeding_ctrl_c, random_picture
from torch import nn

from detcam import Explainer, Explanation
from detcam.methods.perturbation import RISE

SOAK = int(os.environ.get("SOAK", "80"))  # `make soak` gives 10,000
INTERRUPTS = max(SOAK // 10, 8) if NIGHTLY else 3
LONG = pytest.mark.nightly
PARTS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def assert_same(given: Explanation, expected: Explanation) -> None:
    """Bit for bit."""
    assert given.labels == expected.labels
    assert torch.equal(given.boxes, expected.boxes)
    assert torch.equal(given.scores, expected.scores)
    assert all(torch.equal(a, b) for a, b in zip(given.maps, expected.maps, strict=True))


@pytest.mark.nightly
def test_a_few_calls_leave_nothing_behind(detector: nn.Module, picture: np.ndarray) -> None:
    """Hooks, threads, open files and tensors."""
    options: list[dict[str, Any]] = [{}, {"layers": "evidence"}, {"method": RISE(masks=4)}]
    explainers = [Explainer(detector, imgsz=64, max_det=3, **given) for given in options]
    counts = []
    for _ in range(3):
        for explainer in explainers:
            explainer(picture)
        counts.append(state(detector, explainers))
    for kind in ("hooks", "threads", "files", "tensors"):
        assert counts[-1][kind] == counts[0][kind], kind


@pytest.mark.nightly
def test_nothing_grows() -> None:
    """Resident memory, hooks, threads, open files, tensors and objects, over many calls."""
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), str(SOAK)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stderr[-2000:]


# ---- threads ----------


def in_threads(jobs: list[Callable[[], Explanation]]) -> list[Explanation]:
    """The results of jobs that run all at once."""
    results: list[Any] = [None] * len(jobs)
    ready = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        ready.wait()
        try:
            results[i] = jobs[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"layers": "evidence", "target": "box"}, marks=LONG),
        {"method": RISE(masks=4), "max_det": 2, "imgsz": 64},
    ],
)
def test_eight_threads_share_an_explainer(options: dict[str, Any], detector: nn.Module, seed: int) -> None:
    pictures = [random_picture(seed + i, *size) for i, size in enumerate([(120, 200), (96, 96), (64, 128)] * 3)][:8]
    explainer = Explainer(detector, **{"imgsz": 96, **options})
    expected = [explainer(picture) for picture in pictures]
    for given, serial in zip(in_threads([lambda p=p: explainer(p) for p in pictures]), expected, strict=True):
        assert_same(given, serial)


def test_two_explainers_of_one_model_in_two_threads(detector: nn.Module, picture: np.ndarray) -> None:
    before = fingerprint(detector)
    pair = [Explainer(detector, imgsz=96), Explainer(detector, imgsz=96, layers=["model.9"])]
    expected = [explainer(picture) for explainer in pair]
    for _ in range(3):
        for given, serial in zip(in_threads([lambda e=e: e(picture) for e in pair]), expected, strict=True):
            assert_same(given, serial)
    assert fingerprint(detector) == before


def test_a_copy_does_not_wait_for_the_original(detector: nn.Module, picture: np.ndarray) -> None:
    """Both are inside a call at once: each waits there for the other."""
    meeting = threading.Barrier(2)

    def together(outputs: Any, objects: list[Any]) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            meeting.wait(60)
        return torch.cat([outputs.logits[i, 0, o.index] for i, o in enumerate(objects)])

    explainer = Explainer(detector, imgsz=96, target=together)
    twin = copy.deepcopy(explainer)
    given, expected = in_threads([lambda: twin(picture), lambda: explainer(picture)])
    assert_same(given, expected)


# ---- inside the user's work ----------


@pytest.mark.parametrize(
    "kind",
    [pytest.param("compiled", marks=LONG), "compiled in place", pytest.param("data parallel", marks=LONG), "both"],
)
def test_wrapped_models(kind: str, detector: nn.Module, picture: np.ndarray) -> None:
    expected = Explainer(detector, imgsz=96)(picture)
    if kind == "compiled in place":
        detector.compile(backend="eager")
        model: Any = detector
    else:
        model = detector if kind == "data parallel" else torch.compile(detector, backend="eager")
        model = nn.DataParallel(model) if kind in ("data parallel", "both") else model
    before = fingerprint(model)
    assert_same(Explainer(model, imgsz=96)(picture), expected)
    assert fingerprint(model) == before


def test_distributed_model(detector: nn.Module, picture: np.ndarray, tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(detector)
        assert_same(Explainer(model, imgsz=96)(picture), Explainer(detector, imgsz=96)(picture))
    finally:
        torch.distributed.destroy_process_group()


def train(model: nn.Module, batch: torch.Tensor, look: Callable[[], object]) -> dict[str, Any]:
    """Two steps with dropout and batch statistics; `look` is called between all of their parts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model.train()
    for _ in range(2):
        look()
        optimizer.zero_grad()
        outputs = model(nn.functional.dropout(batch, 0.2))
        look()
        tensors = outputs.values() if isinstance(outputs, dict) else outputs
        loss = sum(t.float().square().mean() for t in tensors if isinstance(t, torch.Tensor))
        loss.backward()
        look()
        optimizer.step()
        look()
        assert model.training
    drawn = torch.rand(3), random.random(), float(np.random.rand())  # noqa: NPY002
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "grad": gradients, "drawn": drawn}


def test_in_the_middle_of_a_training_loop(detector: nn.Module, picture: np.ndarray, seed: int) -> None:
    batch = torch.rand(2, 3, 64, 64)
    alone = train(copy.deepcopy(detector), batch, lambda: None)
    explainer = Explainer(detector, imgsz=96, max_det=4)
    fresh = [{}, {"layers": "evidence"}, {"method": RISE(masks=4)}, {"method": "eigencam"}]

    def look() -> None:
        explainer(picture)
        fresh.append(fresh.pop(0))
        Explainer(detector, imgsz=96, max_det=2, **fresh[0])(picture).heatmaps  # noqa: B018

    beside = train(detector, batch, look)
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)


# ---- interrupted ----------


def interrupted(run: Callable[[], object], after: float) -> None:
    """Call `run`; Ctrl-C comes `after` seconds after its start, even if it has ended by then."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(after, _thread.interrupt_main)
    try:
        timer.start()
        run()
        while timer.is_alive():
            time.sleep(0.001)
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"layers": "evidence"}, marks=LONG), {"method": RISE(masks=8), "max_det": 2}]
)
def test_ctrl_c_at_any_moment(options: dict[str, Any], detector: nn.Module, picture: np.ndarray, seed: int) -> None:
    before = fingerprint(detector)
    explainer = Explainer(detector, imgsz=96, **options)
    expected = explainer(picture)
    inside = hooks(explainer)
    began = time.perf_counter()
    explainer(picture)
    took = time.perf_counter() - began
    draw = random.Random(seed)
    for _ in range(INTERRUPTS):
        interrupted(lambda: explainer(picture), draw.uniform(0, took))
        assert fingerprint(detector) == before
        assert hooks(explainer) == inside
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
    assert_same(explainer(picture), expected)
    (given,) = in_threads([lambda: explainer(picture)])  # the lock was released
    assert_same(given, expected)


def hooks(explainer: Explainer) -> list[int]:
    return [len(getattr(m, part)) for m in explainer.adapter.module.modules() for part in PARTS]


@pytest.mark.nightly
def test_ctrl_c_leaves_whole_folders(tmp_path: Path, seed: int) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(60):
        cv2.imwrite(str(photos / f"{i:03d}.png"), random_picture(seed + i, 96, 128))
    command = [sys.executable, "-m", "detcam", "explain", *map(str, sorted(photos.iterdir()))]
    command += ["--model", "scenes-yolo", "--imgsz", "64", "--conf", "0.01", "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_ctrl_c
    ) as process:
        deadline = time.monotonic() + 100
        while len(list(out.glob("*/explanation.json"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    folders = sorted(folder for folder in out.iterdir() if folder.is_dir())
    assert 3 <= len(folders) < 60
    for folder in folders:
        assert not folder.name.startswith("."), "half a folder was left"
        document = json.loads((folder / "explanation.json").read_text())
        with np.load(folder / "heatmaps.npz") as arrays:
            assert len(arrays["heatmaps"]) == len(document["objects"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
