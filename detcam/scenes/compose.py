"""Scene composition: sprites, their positions, and painting in order, with exact labels.

`plan` selects and places the sprites; `paint` renders any plan as a `Scene`.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from detcam.errors import InputError
from detcam.scenes.backgrounds import background
from detcam.scenes.pen import Palette, Pen
from detcam.scenes.shapes import DRAWINGS

CLASSES: tuple[str, ...] = tuple(DRAWINGS)
MIN_SIDE = 96  # px; smaller images have no room for three objects
MIN_VISIBLE = 0.4  # visible share of an object's silhouette, after occlusion and cropping

_OVERSAMPLE = 3
_MARGIN = 1.25  # of the unit circle: room for strokes and shading
_RADII = (0.10, 0.23)  # of an object, as a fraction of the shorter side of the image
_COUNTS = (3, 8)
# Largest rotation of a class in degrees, both ways; classes with a natural upright stay near it.
_ROTATIONS = {"kite": 60, "fish": 40, "ladybird": 180, "flower": 30, "mushroom": 25, "umbrella": 40}
_ROTATION = 15


@dataclass(frozen=True)
class Scene:
    """An image and its N objects, in painting order: later objects lie on top.

    image: uint8 [H,W,3] RGB. boxes: float32 [N,4], xyxy in pixels, tight around `masks` (right and bottom
    exclusive). class_ids: int64 [N], indices into `CLASSES`. masks: bool [N,H,W], the visible pixels.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Sprite:
    """A drawn object without background: colour float32 [h,w,3], premultiplied by alpha, and alpha float32 [h,w]."""

    colour: NDArray[np.float32]
    alpha: NDArray[np.float32]
    class_id: int


@dataclass(frozen=True)
class Placed:
    """A sprite with its upper left corner at pixel (left, top), which may lie outside the image."""

    sprite: Sprite
    left: int
    top: int


@dataclass(frozen=True)
class Plan:
    """A background, uint8 [H,W,3], and the objects on it from bottom to top."""

    background: NDArray[np.uint8]
    objects: tuple[Placed, ...]


def draw_scene(seed: int, size: tuple[int, int] = (480, 640)) -> Scene:
    """Draw a scene of 3 to 8 overlapping objects of `CLASSES`; the same seed gives the same bits.

    `size` is (height, width) in pixels. At least 40 % of every object's silhouette is visible. Seeds below
    `HELD_OUT_SEED` are for training, seeds from there on for tests only. Raises InputError for a
    negative seed or a side below `MIN_SIDE`.
    """
    return paint(plan(seed, size))


def plan(seed: int, size: tuple[int, int] = (480, 640)) -> Plan:
    """Select and place the objects of a scene: see `draw_scene`."""
    height, width = size
    if seed < 0 or min(size) < MIN_SIDE:
        raise InputError(f"draw_scene: seed {seed}, size {size}: give a seed >= 0 and sides >= {MIN_SIDE} px")
    rng = np.random.default_rng(seed)
    palette = Palette.random(rng)
    ground = background(rng, palette, height, width)
    wanted = int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))
    return Plan(ground, _place(rng, palette, wanted, height, width))


def paint(scene_plan: Plan) -> Scene:
    """Paint the objects over the background in order, each on a soft drop shadow."""
    canvas = scene_plan.background.astype(np.float32)
    height, width = canvas.shape[:2]
    drop = max(2, round(min(height, width) * 0.011))
    masks = np.zeros((len(scene_plan.objects), height, width), bool)
    for i, placed in enumerate(scene_plan.objects):
        sprite = placed.sprite
        shadow = cv2.GaussianBlur(np.pad(sprite.alpha, 2 * drop), (0, 0), drop * 0.8)
        where, part = _overlap(shadow.shape, placed.left - drop, placed.top - drop, height, width)
        canvas[where] *= 1 - 0.3 * shadow[part][..., None]
        where, part = _overlap(sprite.alpha.shape, placed.left, placed.top, height, width)
        canvas[where] = canvas[where] * (1 - sprite.alpha[part][..., None]) + sprite.colour[part]
        solid = _solid_pixels(placed, height, width)
        masks[:i] &= ~solid
        masks[i] = solid
    tight = [cv2.boundingRect(mask.view(np.uint8)) for mask in masks]
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in tight], np.float32).reshape(-1, 4)
    class_ids = np.array([placed.sprite.class_id for placed in scene_plan.objects], np.int64)
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), boxes, class_ids, masks)


def draw_sprite(class_id: int, radius: float, rng: np.random.Generator, palette: Palette) -> Sprite:
    """Draw one object of about `radius` pixels, rotated, mirrored and stretched at random."""
    name = CLASSES[class_id]
    turn = np.deg2rad(rng.uniform(-1, 1) * _ROTATIONS.get(name, _ROTATION))
    stretch = rng.uniform(0.9, 1.1)
    side = int(np.ceil(2 * radius * _MARGIN))
    cos, sin = np.cos(turn), np.sin(turn)
    axes = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch * rng.choice((-1, 1)), 1 / stretch])
    matrix = np.column_stack([axes * radius * _OVERSAMPLE, np.full(2, side * _OVERSAMPLE / 2)])
    pen = Pen(matrix, side * _OVERSAMPLE, side * _OVERSAMPLE)
    DRAWINGS[name](pen, palette.ink(rng), rng)
    light = np.linspace(1.06, 0.94, side, dtype=np.float32)  # light from the upper left
    colour, alpha = pen.reduced(side)
    colour = np.minimum(colour * ((light[:, None] + light) / 2)[..., None], 255 * alpha[..., None])
    return Sprite(colour, alpha, class_id)


def _place(rng: np.random.Generator, palette: Palette, wanted: int, height: int, width: int) -> tuple[Placed, ...]:
    """Place objects in turn, keeping those below visible enough."""
    objects: list[Placed] = []
    visible = np.zeros((0, height, width), bool)
    shrink = 1.0
    while len(objects) < wanted:
        radius = shrink * min(height, width) * rng.uniform(*_RADII)
        sprite = draw_sprite(int(rng.integers(len(CLASSES))), radius, rng, palette)
        placed = _find_room(rng, sprite, objects, visible)
        if placed is not None:
            mask = _solid_pixels(placed, height, width)
            visible = np.concatenate([visible & ~mask, mask[None]])
            objects.append(placed)
            continue
        shrink *= 0.92  # crowded: try smaller objects, then accept fewer
        if shrink < 0.6 and len(objects) >= _COUNTS[0]:
            break
    return tuple(objects)


def _find_room(
    rng: np.random.Generator, sprite: Sprite, objects: list[Placed], visible: NDArray[np.bool_]
) -> Placed | None:
    """Try a dozen positions for a sprite on top of `objects`, whose visible pixels are `visible` [N,H,W].

    A position is valid if most of the sprite is inside the image and enough of all other objects stays visible.
    """
    height, width = visible.shape[1:]
    enough = np.array([(MIN_VISIBLE + 0.05) * _outline(placed.sprite) for placed in objects])
    for _ in range(12):
        placed = _random_place(rng, sprite, objects, height, width)
        mask = _solid_pixels(placed, height, width)
        left_over = (visible & ~mask).sum(axis=(1, 2))
        if mask.sum() >= 0.75 * _outline(sprite) and (left_over >= enough).all():
            return placed
    return None


def _outline(sprite: Sprite) -> int:
    """Return the number of pixels of a sprite's silhouette."""
    return int((sprite.alpha >= 0.5).sum())


def _solid_pixels(placed: Placed, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels of the image, bool [H,W], that a placed sprite covers."""
    where, part = _overlap(placed.sprite.alpha.shape, placed.left, placed.top, height, width)
    mask = np.zeros((height, width), bool)
    mask[where] = placed.sprite.alpha[part] >= 0.5
    return mask


def _random_place(rng: np.random.Generator, sprite: Sprite, objects: list[Placed], height: int, width: int) -> Placed:
    """A random position: for half of the objects anywhere, for the others next to an earlier object, to overlap it."""
    side = sprite.alpha.shape[0]
    if objects and rng.random() < 0.5:
        near = objects[rng.integers(len(objects))]
        reach = near.sprite.alpha.shape[0] / 2
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0) * (reach + side / 2) * 0.8
        x = near.left + reach + distance * np.cos(angle)
        y = near.top + reach + distance * np.sin(angle)
    else:
        x, y = rng.uniform(0.25 * side, width - 0.25 * side), rng.uniform(0.25 * side, height - 0.25 * side)
    return Placed(sprite, round(x - side / 2), round(y - side / 2))


def _overlap(
    shape: tuple[int, ...], left: int, top: int, height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the window of the picture that a patch at (left, top) covers, and the same in the patch."""
    rows = slice(min(max(top, 0), height), max(0, min(top + shape[0], height)))
    columns = slice(min(max(left, 0), width), max(0, min(left + shape[1], width)))
    part = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return (rows, columns), part
