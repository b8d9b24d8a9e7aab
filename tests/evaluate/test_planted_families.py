"""The planted scenes' models of other families than YOLO: interventions prove that they go by the cause alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from support import NIGHTLY

from benchmarks.causality import Causality, causality
from detcam import zoo
from detcam.evaluate.planted.interventions import FAMILIES, Witness
from detcam.evaluate.planted.judge import MEASURES, judge, seeds_of
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import VARIANTS

LIBRARIES = {"detr": "transformers", "rcnn": "torchvision", "semantic": "transformers"}
FIRST = HELD_OUT_SEED + 600_000  # neither trained on nor in the published figures
SCENES = 16 if NIGHTLY else 3
NAMES = [measure.name for measure in MEASURES]


@pytest.fixture(
    scope="module", params=[(family, variant) for family in LIBRARIES for variant in VARIANTS], ids="-".join
)
def witness(request: pytest.FixtureRequest) -> Witness:
    family, variant = request.param
    pytest.importorskip(LIBRARIES[family])
    return Witness(variant, family=family)


@pytest.fixture(scope="module")
def shown(witness: Witness) -> Causality:
    return causality(witness, range(FIRST, FIRST + SCENES))


def test_held_out_objects_are_found(shown: Causality) -> None:
    assert shown.recall >= 0.9


def test_the_cause_decides_the_class(shown: Causality) -> None:
    assert shown.decided >= 0.9
    assert shown.flipped >= 0.9
    assert shown.kept >= 0.9
    assert shown.effect >= 2  # logits


def test_nothing_else_does(witness: Witness, shown: Causality) -> None:
    assert (
        abs(shown.removal) < 0.25
    )  # the share of the margin that is left without the cause: the median of few objects
    assert shown.distractor < 0.02
    assert shown.no_distractor < 0.02
    if witness.variant == "context":
        assert shown.mark is not None
        assert shown.mark < 0.1


def test_scores_are_read_where_the_object_was_found(witness: Witness) -> None:
    """Unchanged, the probability is the object's score; the queries of a transformer are those of the unchanged image."""
    found = witness.find(FIRST)
    scores = witness.scores(found, [None, "distractor", None], "prob")
    torch.testing.assert_close(scores[:, 0], scores[:, 2])
    if witness.family is not FAMILIES["semantic"]:  # whose score is a mean over pixels, not over cells
        torch.testing.assert_close(scores[:, 0], found.objects.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", LIBRARIES)
@pytest.mark.parametrize("variant", ["mark", "beacon"])
def test_layerig_finds_the_cause(variant: str, family: str) -> None:
    pytest.importorskip(LIBRARIES[family])
    table = judge(variant, seeds_of(3, 7), ["layerig"], ["stem"], family=family)
    assert table.found >= 0.9
    heat, noise = (
        dict(zip(NAMES, table.values[name].mean(axis=0), strict=True)) for name in ("layerig @ stem", "noise")
    )
    assert heat["mass"] > 0.4 > 20 * noise["mass"]
    assert heat["hit"] > 0.8


def test_the_models_are_small_and_none_is_made_with_ultralytics() -> None:
    files = [path for pattern in ("planted_*", "planted_*/*") for path in zoo.FOLDER.glob(pattern) if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    for family, library in LIBRARIES.items():
        for variant in VARIANTS:
            name = FAMILIES[family].model(variant)
            description = yaml.safe_load((zoo.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
            assert description["library"] == library
            assert {library, "torch"} <= set(description["training"])
            assert "ultralytics" not in description["training"]
            assert description["held_out"]["first_seed"] >= HELD_OUT_SEED
            assert np.isfinite(description["held_out"]["decided"])
