"""Public functions raise only errors of the package, in one line that says what to do."""

import ast
import builtins
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import explanation_of, random_picture, random_yolo
from torch import nn

import detcam
from detcam import Explainer, errors, zoo
from detcam.config import Preset, read_preset
from detcam.errors import DependencyError, DetcamError, InputError
from detcam.evaluate.labels.read import read_labels
from detcam.images import read_image
from detcam.methods import get_method
from detcam.models.load import load_model
from detcam.report import write_report
from detcam.scenes import draw_scene
from detcam.types import Objects
from detcam.video import open_source

PICTURE = random_picture(1, 64, 80)
ODD: tuple[Any, ...] = (
    None,
    3,
    -1,
    2.5,
    float("nan"),
    "nothing",
    "",
    b"x",
    [],
    {},
    object(),
    np.zeros((2, 2)),
    nn.Linear(2, 2),
)


def attempt(call: Callable[[], Any]) -> None:
    """Call: either a result or an error of the package; for anything else pytest shows the traceback."""
    line = ""
    try:
        call()
    except DetcamError as error:
        line = str(error)
        if len(line) < 10:
            raise
    assert line.isprintable() or not line


@pytest.fixture(scope="module")
def yolo() -> nn.Module:
    return random_yolo("yolov8n.yaml", 1, PICTURE, 64)


@pytest.mark.parametrize(
    "option", ["method", "layers", "target", "conf", "iou", "max_det", "imgsz", "device", "segments", "text", "adapter"]
)
def test_options_of_the_explainer(option: str, yolo: nn.Module) -> None:
    for value in ODD:
        if option == "target" and callable(value):
            continue  # a custom target
        attempt(lambda value=value: Explainer(yolo, **{option: value}))  # type: ignore[misc]


def test_models_and_pictures_of_all_kinds(yolo: nn.Module, tmp_path: Path) -> None:
    explainer = Explainer(yolo, imgsz=64)
    for value in (*ODD, tmp_path, tmp_path / "gone.pt", "gone.png"):
        attempt(lambda value=value: Explainer(value))  # type: ignore[misc]
        attempt(lambda value=value: read_image(value))  # type: ignore[misc]
        attempt(lambda value=value: explainer(value))  # type: ignore[misc]
        attempt(lambda value=value: explainer(PICTURE, ask=[value]))  # type: ignore[misc]
        attempt(lambda value=value: explainer(PICTURE, ask=[(value, "x")]))  # type: ignore[misc]
        attempt(lambda value=value: explainer(PICTURE, prompts=[value]))  # type: ignore[misc]
        attempt(lambda value=value: explainer(PICTURE, truth=value))  # type: ignore[misc]
        attempt(lambda value=value: get_method(value))  # type: ignore[misc]


def test_what_reads_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", tmp_path / ("x" * 400), Path("a\0b"), Path("/dev/null")):
        for read in (load_model, read_image, read_labels, read_preset, open_source, lambda p: write_report(p, [p])):
            if path == tmp_path and read is open_source:
                continue
            with pytest.raises(DetcamError):
                read(path)


def test_names_and_numbers() -> None:
    explanation = explanation_of(PICTURE, [torch.rand(4, 5)])
    calls: list[Callable[[], Any]] = [
        lambda: zoo.load("nothing"), lambda: get_method("nothing"), lambda: draw_scene(-1), lambda: draw_scene(0, size=(1, 1)),
        lambda: explanation.render(normalize="nothing"), lambda: explanation.render(normalize="none", dtype=torch.uint8),
        lambda: explanation.overlay(5), lambda: explanation.overlay(-7), lambda: explanation.render(objects=[9]),
        lambda: explanation.render(size=(0, 5)), lambda: explanation.save("/dev/null/x"), lambda: Preset().updated(conf=7),
        lambda: Objects(torch.zeros(2, 4), *[torch.zeros(3)] * 7), lambda: detcam.explain_results(object(), "scenes-yolo"),
        lambda: detcam.compare("scenes-yolo", [], b="scenes-yolo"),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises((DetcamError, IndexError, TypeError)) as caught:
            call()
        if not isinstance(caught.value, DetcamError):
            assert number in (6, 7, 8, 14), f"call {number}: {caught.value!r}"


def test_the_hierarchy_is_documented() -> None:
    """Each class is in the module's table, and keeps the built-in base class that callers may already catch."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, DetcamError)]
    assert len(classes) >= 9
    for cls in classes:
        assert cls.__name__ in str(errors.__doc__)
        assert cls.__doc__
    assert issubclass(InputError, ValueError)
    assert issubclass(DependencyError, ImportError)


def test_no_other_exception_is_raised_by_name() -> None:
    """The source raises errors of the package; ops raise as torch does, and some files catch what they raise."""
    builtin = {
        name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    caught = {  # what these raise they catch themselves, or it is an OSError on its way, or the KeyError of a mapping
        "models/allowed_classes.py", "models/checkpoint.py", "models/transformers_folder.py", "images.py", "files.py",
        "saved.py", "evaluate/labels/coco.py",
        "batch/dataset/folder.py", "batch/dataset/loading.py", "batch/sources/read.py",
    }  # fmt: skip
    raised = []
    root = Path(detcam.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] == "ops" or path.relative_to(root).as_posix() in caught:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in builtin - {"NotImplementedError"}:
                raised.append(f"{path.relative_to(root)}:{node.lineno} {called.id}")  # type: ignore[attr-defined]
    assert not raised, raised
