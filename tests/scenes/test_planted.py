from __future__ import annotations

import numpy as np
import pytest

from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import CAUSES, PARTS, SIZE, VARIANTS, PlantedScene, changes, draw_planted

SHADOW = 10  # px that a part's soft shadow reaches beyond it


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A mask [H, W] and all within `by` pixels of it, along rows and columns."""
    out = mask.copy()
    for axis in (0, 1):
        base = out.copy()
        for step in range(1, by + 1):
            for sign in (-step, step):
                out |= np.roll(base, sign, axis) & _rolled_in(mask.shape, sign, axis)
    return out


def _rolled_in(shape: tuple[int, ...], step: int, axis: int) -> np.ndarray:
    index = np.arange(shape[axis]) - step
    valid = (index >= 0) & (index < shape[axis])
    return np.broadcast_to(valid[:, None] if axis == 0 else valid, shape)


def different(a: PlantedScene, b: PlantedScene) -> np.ndarray:
    return np.asarray((a.image != b.image).any(axis=2))


def several(variant: str, start: int, least: int = 2) -> tuple[int, PlantedScene]:
    """The first scene from `start` on with at least `least` objects."""
    for seed in range(start, start + 200):
        scene = draw_planted(seed, variant)
        if len(scene.boxes) >= least:
            return seed, scene
    raise AssertionError("no scene with several objects")


def test_shapes_dtypes_and_parts(variant: str, seed: int) -> None:
    for number in range(seed, seed + 4):
        scene = draw_planted(number, variant)
        n = len(scene.boxes)
        assert 1 <= n <= 3
        assert (scene.image.shape, scene.image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert scene.boxes.shape == (n, 4)
        assert scene.class_ids.shape == (n,)
        assert tuple(scene.parts) == PARTS[variant]
        stacked = np.stack(list(scene.parts.values()))  # [parts, n, H, W]
        assert stacked.shape[1:] == scene.masks.shape == scene.causes.shape == (n, SIZE, SIZE)
        assert stacked.sum(axis=(0, 1)).max() == 1, "a pixel belongs to two parts"
        assert (scene.causes == scene.parts[CAUSES[variant]]).all()
        assert scene.causes.sum(axis=(1, 2)).min() >= 60
        assert scene.parts["distractor"].sum(axis=(1, 2)).min() >= 20


def test_boxes_are_tight_around_the_objects(variant: str, seed: int) -> None:
    scene = draw_planted(seed, variant)
    for (x1, y1, x2, y2), mask in zip(scene.boxes.astype(int), scene.masks, strict=True):
        inside = mask[y1:y2, x1:x2]
        assert inside.sum() == mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_where_the_cause_lies(variant: str, seed: int) -> None:
    """A mark on its object; a beacon and a patch of ground outside the object, the beacon outside its box, too."""
    for number in range(seed, seed + 8):
        scene = draw_planted(number, variant)
        for i, (x1, y1, x2, y2) in enumerate(scene.boxes.astype(int)):
            on_object = (scene.causes[i] & scene.masks[i]).sum() / scene.causes[i].sum()
            assert on_object == (1 if variant == "mark" else 0)
            if variant == "beacon":
                assert not scene.causes[i, y1:y2, x1:x2].any()
            assert not scene.parts["distractor"][i, y1:y2, x1:x2].any()


def test_a_swap_turns_the_class_and_touches_the_cause_alone(variant: str, seed: int) -> None:
    seed, scene = several(variant, seed)
    swapped = draw_planted(seed, variant, "swap", only=0)
    assert swapped.class_ids[0] == 1 - scene.class_ids[0]
    assert (swapped.class_ids[1:] == scene.class_ids[1:]).all()
    assert all((swapped.parts[name] == scene.parts[name]).all() for name in PARTS[variant])
    changed = different(scene, swapped)
    assert changed.any()
    # A patch of ground reaches under the soft edges and shadows of what lies on it.
    reach = 0 if variant != "context" else SHADOW
    assert not changed[~grown(scene.causes[0], 1 + reach)].any()


def test_a_moved_cause_says_the_same(variant: str, seed: int) -> None:
    seed, scene = several(variant, seed)
    moved = draw_planted(seed, variant, "move", only=0)
    assert (moved.class_ids == scene.class_ids).all()
    assert (moved.boxes == scene.boxes).all()
    changed = different(scene, moved)
    assert changed.any()
    assert not changed[~grown(scene.causes[0] | moved.causes[0], SHADOW)].any()
    assert (moved.causes[1:] == scene.causes[1:]).all()


@pytest.mark.parametrize("change", ["distractor", "no distractor"])
def test_a_changed_distractor_leaves_all_else(variant: str, change: str, seed: int) -> None:
    scene, other = draw_planted(seed, variant), draw_planted(seed, variant, change)
    assert (other.class_ids == scene.class_ids).all()
    assert (other.boxes == scene.boxes).all()
    stars = (scene.parts["distractor"] | other.parts["distractor"]).any(axis=0)
    changed = different(scene, other)
    assert changed.any()
    assert not changed[~grown(stars, SHADOW)].any()
    assert other.parts["distractor"].any() == (change == "distractor")


def test_a_part_that_is_taken_away_is_gone(variant: str, seed: int) -> None:
    seed, scene = several(variant, seed)
    for part in PARTS[variant]:
        without = draw_planted(seed, variant, f"no {part}", only=1)
        assert not without.parts[part][1].any()
        assert (without.parts[part][0] == scene.parts[part][0]).all()
        changed = different(scene, without)
        assert changed[scene.parts[part][1]].mean() > 0.5
        assert not changed[~grown(scene.parts[part][1], 2 * SHADOW)].any()


def test_without_background_only_the_background_is_flat(variant: str, seed: int) -> None:
    scene, flat = draw_planted(seed, variant), draw_planted(seed, variant, "no background")
    things = np.stack(list(scene.parts.values())).any(axis=(0, 1))
    assert len(np.unique(flat.image[~grown(things, SHADOW)].reshape(-1, 3), axis=0)) == 1
    core = ~grown(~things, 2)  # soft edges show what lies behind
    assert (scene.image[core] == flat.image[core]).all(axis=1).mean() > 0.99  # two soft edges may meet inside


def test_the_furrows_alone_are_swapped_not_the_faint_mark(seed: int) -> None:
    scene, swapped = draw_planted(seed, "context"), draw_planted(seed, "context", "swap mark")
    assert (scene.class_ids == swapped.class_ids).all(), "the ground decides"
    assert not different(scene, swapped)[~grown(scene.parts["mark"].any(axis=0), 1)].any()
    assert different(scene, swapped).any()


@pytest.mark.nightly
def test_nothing_but_the_cause_tells_the_class(variant: str) -> None:
    """Place, size, colour of the body and of the distractor are drawn alike: a linear reader of them is at chance."""
    rows, classes = [], []
    for number in range(90):
        scene = draw_planted(number, variant)
        for i in range(len(scene.boxes)):
            body, star = scene.parts["body"][i], scene.parts["distractor"][i]
            where = np.argwhere(star).mean(axis=0) - np.argwhere(body).mean(axis=0)
            rows.append([*scene.boxes[i], *scene.image[body].mean(axis=0), *scene.image[star].mean(axis=0), *where])
            classes.append(scene.class_ids[i])
    x, y = np.array(rows), np.array(classes)
    x = np.c_[(x - x.mean(axis=0)) / x.std(axis=0), np.ones(len(x))]
    half = len(x) // 2
    weights = np.linalg.lstsq(x[:half], 2.0 * y[:half] - 1, rcond=None)[0]
    right = ((x[half:] @ weights > 0) == y[half:]).mean()
    assert 0.35 < right < 0.65
    assert 0.4 < y.mean() < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "mark"), "seed"),
        ((0, "mork"), "variant"),
        ((0, "mark", "swap mark"), "change"),
        ((0, "mark", "no beacon"), "change"),
        ((0, "mark", "swap", 7), "object"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_planted(*arguments)  # type: ignore[arg-type]


def test_every_change_is_drawn_for_held_out_seeds(variant: str) -> None:
    for change in changes(variant):
        assert draw_planted(HELD_OUT_SEED, variant, change).image.any()
