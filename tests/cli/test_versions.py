"""What is too old is refused in one line, or tried with a warning, and the bounds are the same wherever they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detcam import Explainer, InputError
from detcam.cli.families import TESTED, family_rows
from detcam.models.versions import OLDEST, TRIED, require


def model_of(library: str) -> nn.Module:
    """An nn.Module that says that it comes from `library`."""
    return type("Odd", (nn.Module,), {"__module__": f"{library}.models"})()


@pytest.mark.parametrize("library", sorted(OLDEST.keys() - set(TRIED)))
@pytest.mark.parametrize("version", ["0.0.9", "0.0.9+cpu", "0.1.dev3"])
def test_one_clear_line_for_a_version_that_is_too_old(
    library: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, type(sys)(library))
    monkeypatch.setattr(sys.modules[library], "__version__", version, raising=False)
    with pytest.raises(InputError, match="too old") as caught:
        Explainer(model_of(library))
    message = str(caught.value)
    assert "\n" not in message
    assert version in message
    assert OLDEST[library] in message
    assert f'pip install "{library.replace("_", "-")}>={OLDEST[library]}"' in message


@pytest.mark.parametrize("library", OLDEST)
def test_the_oldest_version_and_newer_ones_pass(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, type(sys)(library))
    major, minor = OLDEST[library].split(".")[:2]
    for version in (OLDEST[library], f"{major}.{int(minor) + 10}.0+cu132", f"{int(major) + 1}.0.0.dev1", ""):
        monkeypatch.setattr(sys.modules[library], "__version__", version, raising=False)
        require(library)


def test_what_is_not_imported_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    require("timm")


def test_an_old_ultralytics_is_tried_with_a_warning(
    detector: nn.Module, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forks are as old: the advice to upgrade would overwrite them."""
    ultralytics: Any = pytest.importorskip("ultralytics")
    expected = Explainer(detector, imgsz=160, layers="level")(picture)
    path = tmp_path / "model.pt"
    torch.save({"model": detector}, path)
    monkeypatch.setattr(ultralytics, "__version__", "8.0.1")
    with pytest.warns(UserWarning, match=r"ultralytics 8\.0\.1 is older than .*: it is tried") as warned:
        explanations = [Explainer(model, imgsz=160, layers="level")(picture) for model in (path, detector)]
    assert len(warned) == 1
    assert all(torch.equal(explanation.boxes, expected.boxes) for explanation in explanations)


def test_the_bounds_are_those_of_the_extras() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [line for extra in project["optional-dependencies"].values() for line in extra]
    for library, oldest in OLDEST.items():
        name = library.replace("_", "-")
        bounds = {line.split(",")[0].removeprefix(name) for line in wanted if line.startswith(f"{name}>")}
        assert {tuple(map(int, bound.removeprefix(">=").split("."))) for bound in bounds} == {
            tuple(map(int, oldest.split(".")))
        }, name


def test_every_family_of_a_library_states_both_versions() -> None:
    for row in family_rows():
        library = row["family"].split()[0]
        if library == "custom":
            assert row["oldest"] is row["tested"] is None
        else:
            assert row["oldest"] == f"{library} {OLDEST[library.replace('-', '_')]}"
            assert row["tested"] == f"{library} {TESTED[library]}"
