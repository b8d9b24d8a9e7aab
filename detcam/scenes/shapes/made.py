"""What people make: balloon, kite, house, sailing boat, umbrella."""

from itertools import pairwise

import numpy as np

from detcam.scenes.pen import Ink, Pen, Points, box, curve, ellipse, mirrored, moved, points, rotated


def balloon(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a hot-air balloon: striped envelope, ropes, woven basket."""
    height = np.linspace(-0.95, 0.5, 40)
    crown = np.sqrt(np.clip(1 - ((height + 0.33) / 0.62) ** 2, 0, 1)) * 0.66
    taper = 0.66 - (0.66 - 0.15) * np.clip((height + 0.33) / 0.83, 0, 1) ** 1.7
    half = np.where(height < -0.33, crown, taper)

    def gore(start: float, stop: float) -> Points:
        left, right = np.stack([half * start, height], 1), np.stack([half * stop, height], 1)
        return np.concatenate([left, right[::-1]])

    for x in (-1, 1):
        pen.stroke(ink.dark, 0.025, points([(0.14 * x, 0.48), (0.12 * x, 0.78)]))
        pen.stroke(ink.dark, 0.025, points([(0.05 * x, 0.48), (0.04 * x, 0.78)]))
    envelope = gore(-1, 1)
    pen.fill(ink.main, envelope)
    edges = np.sin(np.linspace(-np.pi / 2, np.pi / 2, int(rng.integers(6, 9)) + 1))
    pen.fill(ink.second, *(gore(a, b) for a, b in zip(edges[:-1:2], edges[1::2], strict=False)))
    region = pen.region(envelope)
    waist = curve([(-0.8, 0.0), (-0.3, 0.1), (0.3, 0.1), (0.8, 0.0)])
    pen.stroke(ink.trim, 0.1, waist, inside=region)
    pen.shade(region, 0.3, 0.3)
    basket = box(-0.16, 0.74, 0.16, 0.97)
    pen.fill(ink.trim, basket)
    woven = pen.region(basket)
    pen.stroke(ink.dark, 0.02, *(box(-0.2, y, 0.2, y) for y in (0.81, 0.87, 0.93)), inside=woven, opacity=0.6)
    pen.fill(ink.dark, box(-0.19, 0.72, 0.19, 0.77))


def kite(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a kite: a diamond of four panels with a waving tail of bows."""
    top, right, bottom, heart = (0.0, -0.97), (0.56, -0.36), (0.0, 0.38), (0.0, -0.36)
    left = (-right[0], right[1])
    y = np.linspace(0.36, 0.98, 20)
    sway = rng.choice((-1, 1)) * 0.13
    tail = np.stack([sway * np.sin((y - 0.36) * 9), y], axis=1)
    pen.stroke(ink.dark, 0.03, tail)
    for at, colour in zip((6, 12, 18), (ink.main, ink.trim, ink.main), strict=True):
        wing = points([(0, 0), (0.15, -0.08), (0.15, 0.08)])
        tilt = rng.uniform(-25, 25)
        pen.fill(colour, rotated(wing, tilt) + tail[at], rotated(mirrored(wing), tilt) + tail[at])
    outline = points([top, right, bottom, left])
    pen.fill(ink.main, outline)
    pen.fill(ink.second, points([top, right, heart]), points([bottom, left, heart]))
    region = pen.region(outline)
    frame = outline * 0.62 + (0, -0.36 * 0.38)
    pen.stroke(ink.trim, 0.05, np.concatenate([frame, frame[:1]]), inside=region)
    pen.stroke(ink.dark, 0.03, points([top, bottom]), points([left, right]))
    pen.shade(region, 0.14, 0.3)


def house(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a house: brick walls, shingled gable roof, chimney, door and windows."""
    flip = rng.choice((-1, 1))
    pen.fill(ink.dark, box(0.36, -0.82, 0.56, -0.3) * (flip, 1))
    walls = box(-0.7, -0.2, 0.7, 0.9)
    pen.fill(ink.second, walls)
    region = pen.region(walls)
    course = 0.11
    rows = np.arange(-0.2, 0.9, course)
    joints = [points([(-0.8, y), (0.8, y)]) for y in rows]
    joints += [
        points([(x + 0.11 * (i % 2), y), (x + 0.11 * (i % 2), y + course)])
        for i, y in enumerate(rows)
        for x in np.arange(-0.8, 0.8, 0.22)
    ]
    pen.stroke(ink.dark, 0.017, *joints, inside=region, opacity=0.4)
    pen.shade(region, 0.16, 0.2)
    arch = ellipse(0, 0.42, 0.15, 0.15, 180, 360)
    door = moved(np.concatenate([arch, points([(0.15, 0.9), (-0.15, 0.9)])]), 0.3 * flip, 0)
    pen.fill(ink.main, door)
    pen.fill(ink.light, ellipse(0.3 * flip + 0.08, 0.64, 0.03))
    for x, y in ((-0.32 * flip, 0.45), (-0.32 * flip, 0.07), (0.3 * flip, 0.07)):
        pen.fill(ink.light, box(x - 0.18, y - 0.14, x + 0.18, y + 0.14))
        pen.fill(ink.trim, box(x - 0.14, y - 0.1, x + 0.14, y + 0.1))
        pen.stroke(ink.light, 0.03, points([(x, y - 0.1), (x, y + 0.1)]), points([(x - 0.14, y), (x + 0.14, y)]))
    roof = points([(0, -0.95), (0.93, -0.1), (-0.93, -0.1)])
    pen.fill(ink.main, roof)
    region = pen.region(roof)
    shingles = [
        ellipse(x + 0.07 * (i % 2), y, 0.07, 0.06, 0, 180)
        for i, y in enumerate(np.arange(-0.9, -0.1, 0.115))
        for x in np.arange(-0.98, 0.98, 0.14)
    ]
    pen.stroke(ink.dark, 0.02, *shingles, inside=region, opacity=0.5)
    pen.shade(region, 0.2, 0.2)


def sailboat(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a sailing boat: planked hull, mast, two seamed sails, a pennant."""
    pen.stroke(ink.dark, 0.045, points([(0.02, 0.5), (0.02, -0.9)]))
    pennant = curve([(0.02, -0.97), (0.16, -0.93), (0.32, -0.87), (0.16, -0.83), (0.02, -0.8)], closed=True)
    pen.fill(ink.trim, pennant)
    belly = rng.uniform(0.04, 0.12)
    main = np.concatenate([curve([(0.07, -0.76), (0.5 + belly, -0.25), (0.78, 0.34)]), points([(0.07, 0.34)])])
    jib = np.concatenate([curve([(-0.04, -0.7), (-0.34 - belly, -0.15), (-0.66, 0.34)]), points([(-0.04, 0.34)])])
    pen.fill(ink.light, main)
    pen.fill(ink.second, jib)
    seams = [curve([(0, y - 0.05), (0.4, y + 0.03), (0.9, y - 0.05)]) for y in np.arange(-0.6, 0.4, 0.17)]
    region = pen.region(main)
    pen.stroke(ink.main, 0.06, *seams[1::2], inside=region)
    pen.stroke(ink.dark, 0.015, *seams, inside=region, opacity=0.4)
    pen.shade(region, 0.18, 0.2)
    region = pen.region(jib)
    folds = [points([(-0.04, y), (-0.9, y + 0.42)]) for y in np.arange(-0.6, 0.4, 0.16)]
    pen.stroke(ink.dark, 0.015, *folds, inside=region, opacity=0.4)
    pen.shade(region, 0.18, 0.2)
    deck, keel = [(-0.95, 0.42), (-0.4, 0.48), (0.4, 0.48), (0.95, 0.4)], [(0.8, 0.7), (0.52, 0.9), (-0.45, 0.9)]
    hull = curve([*deck, *keel, (-0.78, 0.72)], closed=True)
    pen.fill(ink.main, hull)
    region = pen.region(hull)
    pen.stroke(ink.light, 0.07, curve([(-1, 0.47), (-0.4, 0.53), (0.4, 0.53), (1, 0.45)]), inside=region)
    planks = [curve([(-1, y - 0.03), (0, y + 0.02), (1, y - 0.05)]) for y in (0.62, 0.71, 0.8)]
    pen.stroke(ink.dark, 0.02, *planks, inside=region, opacity=0.55)
    pen.shade(region, 0.26, 0.2)


def umbrella(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw an open umbrella: panelled canopy with a scalloped hem, a hooked handle."""
    hook = ellipse(-0.14, 0.74, 0.14, 0.18, 0, 180)
    pen.stroke(ink.dark, 0.055, np.concatenate([points([(0, -0.85), (0, 0.74)]), hook]))
    pen.stroke(ink.trim, 0.085, np.concatenate([points([(0, 0.55), (0, 0.74)]), hook]))
    panels = int(rng.integers(5, 8))
    tips = np.sin(np.linspace(-np.pi / 2, np.pi / 2, panels + 1)) * 0.95

    def rib(x: float) -> Points:
        angle = np.linspace(0, np.pi / 2, 20)
        return np.stack([x * np.sin(angle), -0.82 + 0.84 * (1 - np.cos(angle))], axis=1)

    gores = []
    for left, right in pairwise(tips):
        hem = ellipse((left + right) / 2, 0.02, (right - left) / 2, 0.12, 360, 180)
        gores.append(np.concatenate([rib(left), hem[::-1], rib(right)[::-1]]))
    pen.fill(ink.main, *gores[::2])
    pen.fill(ink.second, *gores[1::2])
    region = pen.region(*gores)
    border = [np.stack([rib(x)[15] for x in tips])]
    pen.stroke(ink.light, 0.05, *border, inside=region, opacity=0.8)
    pen.stroke(ink.dark, 0.02, *(rib(x) for x in tips[1:-1]), opacity=0.6)
    pen.shade(region, 0.3, 0.3)
    pen.stroke(ink.dark, 0.05, points([(0, -0.8), (0, -0.95)]))
