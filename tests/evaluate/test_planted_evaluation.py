from __future__ import annotations

import numpy as np
import pytest
import torch
from support import NIGHTLY

pytest.importorskip("ultralytics")

from benchmarks.causality import Causality, causality
from detcam import Objects
from detcam.evaluate.planted.interventions import Found, Witness, part_masks
from detcam.evaluate.planted.judge import MEASURES, ceilings, judge, measured, relevance_rank, seeds_of
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import PARTS, VARIANTS, draw_planted

FIRST = HELD_OUT_SEED + 500_000  # neither trained on nor in the published figures
SCENES = 16 if NIGHTLY else 3
NAMES = [measure.name for measure in MEASURES]
ONE = ["beacon", *(pytest.param(variant, marks=pytest.mark.nightly) for variant in ("mark", "context"))]


@pytest.fixture(scope="module", params=VARIANTS)
def witness(request: pytest.FixtureRequest) -> Witness:
    return Witness(request.param)


@pytest.fixture(scope="module")
def shown(witness: Witness) -> Causality:
    return causality(witness, range(FIRST, FIRST + SCENES))


def drawn(seed: int, variant: str) -> Found:
    """All objects of a scene, as if a model had found them."""
    scene = draw_planted(seed, variant)
    n = len(scene.boxes)
    zeros = torch.zeros(n, dtype=torch.int64)
    objects = Objects(
        boxes=torch.from_numpy(scene.boxes),
        scores=torch.ones(n),
        class_ids=torch.from_numpy(scene.class_ids),
        labels=("thing",) * n,
        index=zeros,
        level=zeros,
        cells=torch.zeros(n, 2, dtype=torch.int64),
        network_boxes=torch.from_numpy(scene.boxes),
    )
    return Found(seed, scene, objects, torch.arange(n), tuple(range(n)))


def judged(heat: torch.Tensor, found: Found) -> dict[str, torch.Tensor]:
    """Name -> [n], where what each part is worth falls off in the order of `PARTS`."""
    parts = part_masks(found)
    drops = -torch.arange(parts.shape[1]).float().expand(len(heat), -1)
    return dict(zip(NAMES, measured(heat, found, parts, drops).unbind(1), strict=True))


# The measures themselves: on maps whose value is known.


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cause_itself_scores_one(variant: str, seed: int) -> None:
    found = drawn(seed, variant)
    got = judged(torch.from_numpy(found.scene.causes).float() * 3, found)
    for name in ("mass", "rank", "hit"):
        torch.testing.assert_close(got[name], torch.ones(len(found.owners)))
    assert not got["distractor"].any()
    if variant == "beacon":
        assert not got["box"].any(), "box-based measures punish the correct answer"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_distractor_scores_zero(variant: str, seed: int) -> None:
    found = drawn(seed, variant)
    got = judged(torch.from_numpy(found.scene.parts["distractor"]).float(), found)
    assert not torch.stack([got["mass"], got["rank"], got["hit"], got["box"]]).any()
    assert got["distractor"].tolist() == [1.0] * len(found.owners)


def test_a_blank_map_scores_zero(seed: int) -> None:
    found = drawn(seed, "mark")
    got = judged(torch.zeros(found.scene.causes.shape), found)
    assert not torch.stack([got[name] for name in ("mass", "rank", "hit", "distractor", "box", "part ranks")]).any()


@pytest.mark.parametrize("variant", ONE)
def test_noise_scores_as_noise(variant: str, seed: int) -> None:
    found = drawn(seed, variant)
    heat = torch.rand(200, *found.scene.image.shape[:2])
    causes = torch.from_numpy(found.scene.causes[:1]).expand(200, -1, -1)
    share = float(causes[0].float().mean())
    alone = found.keep(torch.tensor([i == 0 for i in range(len(found.owners))]))
    many = Found(seed, found.scene, found.image_objects, alone.positions.repeat(200), (0,) * 200)
    got = judged(heat, many)
    deviation = (share * (1 - share) / float(causes[0].sum())) ** 0.5 / 200**0.5
    assert float(got["mass"].mean()) == pytest.approx(share, rel=0.05)
    assert abs(float(got["rank"].mean()) - share) < 6 * deviation


def test_relevance_rank_by_hand() -> None:
    region = torch.zeros(1, 2, 4, dtype=torch.bool)
    region[0, 0, :2] = True  # k = 2
    heat = torch.tensor([[[9.0, 1.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    assert float(relevance_rank(heat, region)) == 0.5
    ties = torch.tensor([[[9.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]])
    assert float(relevance_rank(ties, region)) == pytest.approx((1 + 1 / 3) / 2)
    even = torch.ones(1, 2, 4)
    assert float(relevance_rank(even, region)) == pytest.approx(2 / 8)
    few = torch.zeros(1, 2, 4)
    few[0, 0, 0] = 1.0  # one hot pixel, in the region; there is nothing to say about a second one
    assert float(relevance_rank(few, region)) == 0.5


def test_relevance_rank_is_the_mean_over_orders_of_equal_pixels(seed: int) -> None:
    heat = torch.randint(1, 4, (1, 6, 6)).float()
    region = torch.rand(1, 6, 6) < 0.3
    region[0, 0, 0] = True
    k = int(region.sum())
    hits = []
    for _ in range(3000):
        shuffled = heat.flatten() + torch.rand(36) * 0.5
        hits.append(float(region.flatten()[shuffled.topk(k).indices].float().mean()))
    assert float(relevance_rank(heat, region)) == pytest.approx(float(np.mean(hits)), abs=0.03)


def test_ceilings_fall_with_coarser_cells(seed: int) -> None:
    found = drawn(seed, "mark")
    mass = [float(judged(heat, found)["mass"].mean()) for heat in ceilings(found).values()]
    assert mass[3] == 1
    assert 1 > mass[0] > mass[1] > mass[2] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_cover_the_picture_once(variant: str, seed: int) -> None:
    found = drawn(seed, variant)
    parts = part_masks(found)
    assert parts.shape[1] == len(PARTS[variant]) + 1
    assert (parts.sum(dim=1) == 1).all()


def test_a_map_with_the_parts_worth_ranks_them_exactly(seed: int) -> None:
    found = drawn(seed, "context")
    parts = part_masks(found)
    worth = torch.rand(parts.shape[:2]).cumsum(dim=1) + 0.1
    worth = worth[:, torch.randperm(worth.shape[1])]
    heat = torch.einsum("np,nphw->nhw", worth / parts.sum(dim=(2, 3)), parts.float())
    got = measured(heat, found, parts, worth)
    torch.testing.assert_close(got[:, NAMES.index("top part")], torch.ones(len(got)))
    torch.testing.assert_close(got[:, NAMES.index("part ranks")], torch.ones(len(got)))


# The models that come with detcam: what they look at is proven by intervention.


def test_the_models_find_held_out_objects(shown: Causality) -> None:
    assert shown.recall >= 0.85


def test_swapping_the_cause_flips_the_class_and_moving_it_does_not(shown: Causality) -> None:
    assert shown.flipped >= 0.9
    assert shown.kept >= 0.9
    assert shown.effect >= 2  # logits


def test_the_distractor_moves_the_logit_by_less_than_a_hundredth(shown: Causality) -> None:
    assert shown.distractor < 0.01
    assert shown.no_distractor < 0.01


def test_the_context_counts_more_than_the_mark_that_it_stands_for(witness: Witness, shown: Causality) -> None:
    if witness.variant != "context":
        assert shown.mark is None
        return
    assert shown.mark is not None
    assert shown.mark < 0.25


def test_losing_the_cause_costs_the_margin_most_and_the_distractor_nothing(witness: Witness) -> None:
    drops = []
    for seed in range(FIRST, FIRST + SCENES):
        found = witness.find(seed)
        drops.append(witness.drops(found.keep(witness.decided(found)), "margin"))
    median = torch.cat(drops).median(dim=0).values
    worth = dict(zip(witness.parts, median.tolist(), strict=True))
    cause = {"mark": "mark", "beacon": "beacon", "context": "context"}[witness.variant]
    others = [value for part, value in worth.items() if part not in (cause, "body")]
    assert worth[cause] > 4 * max(abs(value) for value in others)
    assert abs(worth["distractor"]) < 0.05 * worth[cause]


def test_scores_are_read_where_the_object_was_found(witness: Witness) -> None:
    """Unchanged, the logit is that of the explained object, and its sigmoid the object's score."""
    found = witness.find(FIRST)
    logits = witness.scores(found, [None, None])
    torch.testing.assert_close(logits.sigmoid()[:, 0], found.objects.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, 0], logits[:, 1])


def test_found_objects_are_what_they_are_in_the_scene(witness: Witness) -> None:
    found = witness.find(FIRST + 1)
    for i, owner in enumerate(found.owners):
        assert int(found.objects.class_ids[i]) == int(found.scene.class_ids[owner])
        centre = (found.objects.boxes[i, :2] + found.objects.boxes[i, 2:]) / 2
        x1, y1, x2, y2 = found.scene.boxes[owner]
        assert x1 < float(centre[0]) < x2
        assert y1 < float(centre[1]) < y2


# The judge as a whole.


@pytest.mark.parametrize("variant", ONE)
def test_judge_of_a_variant(variant: str) -> None:
    table = judge(variant, seeds_of(3, 7), ["odam"], ["level", "evidence"], quick=True)
    assert 0 < table.found <= 1
    assert {"odam @ level", "odam @ evidence", "noise", "box", "gaussian", "eigencam", "cause"} <= set(table.values)
    assert all(values.shape == (len(table.scenes), len(MEASURES)) for values in table.values.values())
    assert all(np.isfinite(values).all() for values in table.values.values())
    cause = table.values["cause"].mean(axis=0)
    assert cause[NAMES.index("mass")] == 1
    assert cause[NAMES.index("distractor")] == 0
