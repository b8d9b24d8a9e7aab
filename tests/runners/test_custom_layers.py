"""Custom layers in a small YOLO: the maps of every method that reads gradients equal those of plain autograd."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fingerprint
from torch import nn
from torch.utils import checkpoint

sys.path.append(str(Path(__file__).parents[1] / "methods"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from edited_layers import LAYERS, Deformable, SelectiveScan
from edited_maps import METHODS, OBJECTS, compared, rows
from edited_mechanisms import (
    MECHANISMS,
    Checkpoint,
    Compiled,
    FunctionOnce,
    InPlace,
    Int8,
    PythonFunction,
    ReentrantCheckpoint,
)
from edited_yolo import FORMULAS, PLACES, SIDE, edited
from layer_formulas import LAYER_FORMULAS

from detcam import Explainer
from detcam.methods import METHODS as ALL

TOLERANCE = 1e-4  # of the maximum
KINDS = (*LAYERS, *MECHANISMS)
ELSEWHERE = {"cam", "relevance", "search"}  # for classifiers, for transformers with queries, starts from layerig


def test_every_method_that_reads_gradients_is_compared() -> None:
    assert {name for name, method in ALL.items() if "gradients" in method.reads} - ELSEWHERE == set(METHODS)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formulas_are_those_in_loops(name: str, seed: int) -> None:
    acts, grads = torch.rand(4, 5, 6, dtype=torch.float64) + 0.1, torch.randn(4, 5, 6, dtype=torch.float64)
    acts, grads = acts * torch.tensor([5.0, 1, 1, 1])[:, None, None], 10 * grads
    found = torch.from_numpy(FORMULAS[name](acts.numpy(), grads.numpy()))
    expected = LAYER_FORMULAS[name](acts, grads).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def assert_exact(kind: type[nn.Module], place: str, seed: int, pairs: list[tuple[str, str]]) -> None:
    model, picture = edited(kind, place, seed)
    before = fingerprint(model)
    cell = compared(model, picture, pairs)
    assert fingerprint(model) == before
    assert {at: error for at, error in cell.errors.items() if not error <= TOLERANCE + cell.rounding[at]} == {}
    assert all(len(texts) <= 1 for texts in cell.warned.values()), cell.warned
    for at, sentence in cell.refused.items():
        if kind is Int8:
            assert "computes in int8" in sentence
            continue
        assert at[0] == "shapleycam"
        assert "torch has no second derivative" in sentence
        assert at not in cell.lost or kind is FunctionOnce


@pytest.mark.nightly
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_method_in_every_place(kind: type[nn.Module], place: str, seed: int) -> None:
    assert_exact(kind, place, seed, list(rows()))


@pytest.mark.parametrize(
    ("kind", "place", "pairs"),
    [
        (SelectiveScan, "backbone", [("layerig", "stem")]),
        (Deformable, "neck", [("gradcam", "evidence"), ("layercam", "model.2")]),
        (InPlace, "head", [("odam", "level"), ("fullgrad", "auto")]),
        (Int8, "neck", [("odam", "model.2"), ("gradient", "auto")]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_some_methods_in_some_places(kind: type[nn.Module], place: str, pairs: Any, seed: int) -> None:
    assert_exact(kind, place, seed, pairs)


@pytest.mark.parametrize("kind", [Checkpoint, ReentrantCheckpoint])
def test_layers_inside_a_checkpoint_and_before_it(kind: type[nn.Module], seed: int) -> None:
    model, picture = edited(kind, "backbone", seed)
    originals = dict(vars(checkpoint))
    cell = compared(model, picture, [("odam", f"model.{x}") for x in ("4.cv2.act.1.body.0", "2")])
    assert all(error <= TOLERANCE for error in cell.errors.values()), cell.errors
    assert len(cell.errors) == 2
    assert not any(cell.warned.values())
    assert vars(checkpoint) == originals


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_function_in_python_is_one_warning_and_compiled_parts_are_none(seed: int) -> None:
    for kind, count in ((PythonFunction, 1), (Compiled, 0)):
        model, picture = edited(kind, "head", seed)
        explainer = Explainer(model, "odam", "level", imgsz=SIDE, conf=0.3, max_det=OBJECTS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explainer(picture), explainer(picture)
        assert sum("gradients in windows cannot pass" in str(w.message) for w in caught) == count
