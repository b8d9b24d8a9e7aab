"""Planted scenes: the cause of each object's class is known to the pixel and can be changed.

Every object is a plain body. The cause of its class, ring or cross, depends on the variant:

- "mark": a badge on the body.
- "beacon": a badge beside the body, outside its box.
- "context": the furrows of the ground under the body. The body also has a faint badge with the same class; in training
  the two always agree, and the furrows are the easier cue.

Beside every object lies a star without information. Bodies, positions and colours have the same distribution for both
classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detcam.errors import InputError
from detcam.scenes.backgrounds import background
from detcam.scenes.compose import Placed, Plan, Sprite, paint
from detcam.scenes.pen import Palette
from detcam.scenes.planted_parts import BADGE, FAINT_BADGE, badge, body, patch, star

VARIANTS = ("mark", "beacon", "context")
CAUSES = {"mark": "mark", "beacon": "beacon", "context": "context"}  # the part that decides the class
PARTS: dict[str, tuple[str, ...]] = {  # of an object, from bottom to top
    "mark": ("body", "mark", "distractor"),
    "beacon": ("body", "beacon", "distractor"),
    "context": ("context", "body", "mark", "distractor"),
}
CHANGES = ("swap", "move", "distractor", "swap mark", "no background")  # and "no NAME" for each name of PARTS
SIZE = 192  # px, both sides
_CELL = SIZE // 2  # px: each object and its parts have a quarter of the image
_STAR = 7.0

Mask = NDArray[np.bool_]
Spot = NDArray[np.float64]  # x, y


@dataclass(frozen=True)
class PlantedScene:
    """An image with N objects and the causes of their classes."""

    image: NDArray[np.uint8]  # uint8 [H, W, 3] RGB
    boxes: NDArray[np.float32]  # float32 [N, 4] xyxy in pixels, tight around `masks`
    # Int64 [N], indices into `planted_parts.SYMBOLS`: the class of the cause, after any change.
    class_ids: NDArray[np.int64]
    masks: Mask  # bool [N, H, W], the object: its body with any mark on it
    causes: Mask  # bool [N, H, W], the visible pixels of the cause of each object's class
    # Name -> bool [N, H, W], disjoint: "body" (without a mark), "distractor", and by variant "mark", "beacon",
    # "context".
    parts: dict[str, Mask]


def draw_planted(seed: int, variant: str, change: str | None = None, only: int | None = None) -> PlantedScene:
    """Draw a scene of one to three objects, 192 x 192 pixels; the same arguments give the same bits.

    Seeds are >= 0; those from `detcam.scenes.HELD_OUT_SEED` on are for tests and figures. `only` is the object to
    change, None: all. Changes: "swap" (the cause is that of the other class), "move" (the cause has another position
    and the same class; a patch of ground keeps its position and gets other furrows), "distractor" (another star
    elsewhere), "swap mark" (in "context", only the faint badge is that of the other class), "no NAME" (without the part
    of that name), "no background" (its mean colour instead). Raises an InputError for an unknown variant, a change or
    an object that does not exist, or a negative seed.
    """
    if seed < 0 or variant not in VARIANTS:
        raise InputError(f"draw_planted: seed {seed}, {variant!r}: give a seed >= 0 and a variant of {VARIANTS}")
    if change not in (None, *changes(variant)):
        raise InputError(f"draw_planted: change {change!r}: {variant!r} has {', '.join(changes(variant))}")
    rng = _rng(seed, variant)
    palette = Palette.random(rng)
    cells = rng.permutation(4)[: rng.integers(1, 4)]
    if only is not None and not 0 <= only < len(cells):
        raise InputError(f"draw_planted: object {only} of {len(cells)}")
    class_ids = rng.integers(0, 2, len(cells))
    placed, owners = [], []
    for i, cell in enumerate(cells):
        applied = change if only in (None, i) else None
        for part, sprite, (x, y) in _object(int(class_ids[i]), (seed, variant, int(cell)), palette, applied):
            if applied != f"no {part}":
                side = sprite.alpha.shape[0]
                placed.append(Placed(sprite, round(x - side / 2), round(y - side / 2)))
                owners.append((i, part))
        class_ids[i] ^= applied == "swap"
    ground = _ground(seed, variant)
    if change == "no background":
        ground = np.broadcast_to(np.rint(ground.mean(axis=(0, 1))).astype(np.uint8), ground.shape)
    return _painted(Plan(ground, tuple(placed)), owners, class_ids.astype(np.int64), variant)


def changes(variant: str) -> tuple[str, ...]:
    """The changes that `draw_planted` has for a variant."""
    plain = tuple(change for change in CHANGES if change != "swap mark" or variant == "context")
    return (*plain, *(f"no {part}" for part in PARTS[variant]))


def _rng(seed: int, variant: str, *stream: int) -> np.random.Generator:
    """A separate random stream for each ingredient: a change of an ingredient leaves the others unchanged."""
    return np.random.default_rng((seed, VARIANTS.index(variant), *stream))


@lru_cache(maxsize=4)
def _ground(seed: int, variant: str) -> NDArray[np.uint8]:
    """The background of a scene, cached for its changed versions."""
    rng = _rng(seed, variant, 9)
    ground = background(rng, Palette.random(rng), SIZE, SIZE)
    ground.setflags(write=False)
    return ground


def _object(
    class_id: int, place: tuple[int, str, int], palette: Palette, change: str | None
) -> Iterator[tuple[str, Sprite, Spot]]:
    """The parts of an object from bottom to top: name, sprite and centre."""
    seed, variant, cell = place
    rng = _rng(seed, variant, cell, 1)
    shown = 1 - class_id if change == "swap" else class_id
    radius = rng.uniform(15, 21)
    corner = np.array(((cell % 2) * _CELL, (cell // 2) * _CELL), float)
    centre = corner + _CELL / 2 + rng.uniform(-9, 9, 2)

    moved = _rng(seed, variant, cell, 3 if change == "move" else 2)
    if variant == "context":
        reach = _CELL / 2 - 2 - np.abs(centre - corner - _CELL / 2).max()
        yield "context", patch(moved, palette, shown, min(radius + 14, reach)), centre
    yield "body", body(rng, palette, radius), centre
    if variant == "mark":
        yield "mark", badge(shown), centre + _within(moved, radius - BADGE - 2)
    if variant == "beacon":
        side = int(rng.integers(4))
        yield "beacon", badge(shown), _beside(moved, corner, centre, radius, BADGE, side)
    if variant == "context":
        faint = 1 - class_id if change == "swap mark" else class_id
        yield "mark", badge(faint, FAINT_BADGE), centre + _within(rng, radius - FAINT_BADGE - 2)

    other = _rng(seed, variant, cell, 5 if change == "distractor" else 4)
    sides = [side + 1, side + 2, side + 3] if variant == "beacon" else [0, 1, 2, 3]
    where = int(other.choice(sides)) % 4
    yield "distractor", star(other, _STAR), _beside(other, corner, centre, radius, _STAR, where)


def _within(rng: np.random.Generator, radius: float) -> Spot:
    """A random position in a disc around the origin."""
    angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform(0, 1))
    return distance * 0.8 * np.array((np.cos(angle), np.sin(angle)))


def _beside(rng: np.random.Generator, corner: Spot, centre: Spot, radius: float, size: float, side: int) -> Spot:
    """The centre of a sprite of radius `size` beside the box: right, below, left or above, inside the cell."""
    away = radius + size + rng.uniform(4, 12)
    along = rng.uniform(-radius, radius)
    axis, sign = side % 2, 1 if side < 2 else -1
    spot = centre.copy()
    spot[axis] += sign * away
    spot[1 - axis] += along
    return np.clip(spot, corner + size + 1, corner + _CELL - size - 1)


def _painted(plan: Plan, owners: list[tuple[int, str]], class_ids: NDArray[np.int64], variant: str) -> PlantedScene:
    """The scene; `owners` are the object and part of each sprite."""
    scene = paint(plan)
    parts = {name: np.zeros((len(class_ids), *scene.image.shape[:2]), bool) for name in PARTS[variant]}
    boxes = np.zeros((len(class_ids), 4), np.float32)
    for (owner, name), mask, box in zip(owners, scene.masks, scene.boxes, strict=True):
        parts[name][owner] = mask
        if name == "body":
            boxes[owner] = box
    masks = parts["body"] | parts["mark"] if "mark" in parts else parts["body"]
    return PlantedScene(scene.image, boxes, class_ids, masks, parts[CAUSES[variant]], parts)
