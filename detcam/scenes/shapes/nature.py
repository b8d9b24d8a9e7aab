"""What grows or swims or crawls: fish, mushroom, cactus, ladybird, flower."""

import numpy as np

from detcam.scenes.pen import Ink, Pen, box, curve, ellipse, mirrored, moved, points, rotated


def fish(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a fish: scales, rayed fins, a forked tail."""
    back = [(-0.95, 0.04), (-0.68, -0.27), (-0.2, -0.43), (0.28, -0.27), (0.58, -0.08)]
    belly = [(0.58, 0.1), (0.28, 0.27), (-0.2, 0.42), (-0.7, 0.28)]
    body = curve(back + belly, closed=True)
    tail = curve([(0.5, 0), (0.78, -0.38), (0.97, -0.46), (0.86, 0), (0.97, 0.46), (0.78, 0.38)], closed=True)
    dorsal = curve([(-0.45, -0.3), (-0.25, -0.62), (0.1, -0.68), (0.3, -0.55), (0.38, -0.15)], closed=True)
    anal = curve([(-0.05, 0.3), (0.05, 0.58), (0.25, 0.58), (0.36, 0.16)], closed=True)
    pen.fill(ink.second, tail, dorsal, anal)
    fins = pen.region(tail, dorsal, anal)
    rays = [points([(0.5, 0), (1.0, y)]) for y in (-0.4, -0.25, -0.1, 0.1, 0.25, 0.4)]
    rays += [points([(x, 0), (x + 0.16, -0.7)]) for x in (-0.35, -0.23, -0.11, 0.01, 0.13)]
    pen.stroke(ink.dark, 0.02, *rays, inside=fins, opacity=0.55)
    pen.fill(ink.main, body)
    region = pen.region(body)
    shine = curve([(-1, 0.2), (-0.2, 0.22), (0.6, 0.1), (0.3, 0.6), (-0.8, 0.6)], closed=True)
    pen.fill(ink.light, shine, inside=region, opacity=0.35)
    step = rng.uniform(0.13, 0.16)
    scales = [
        ellipse(x + (row % 2) * step / 2, row * step * 0.8 - 0.45, step * 0.52, start=-80, stop=80)
        for row in range(9)
        for x in np.arange(-0.42, 0.6, step)
    ]
    pen.stroke(ink.dark, 0.022, *scales, inside=region, opacity=0.5)
    face = curve([(-1, -0.5), (-0.5, -0.45), (-0.42, 0), (-0.5, 0.45), (-1, 0.5)], closed=True)
    pen.fill(ink.trim, face, inside=region)
    pen.shade(region, 0.3, 0.22)
    pen.fill(ink.second, curve([(-0.3, 0.1), (0.05, 0.04), (0.1, 0.2), (-0.05, 0.28)], closed=True))
    pen.fill((255, 255, 255), ellipse(-0.66, -0.07, 0.1))
    pen.fill((30, 32, 40), ellipse(-0.68, -0.07, 0.055))
    pen.stroke(ink.dark, 0.025, curve([(-0.93, 0.1), (-0.85, 0.13), (-0.76, 0.11)]))


def mushroom(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a mushroom: a domed cap with round spots, gills, a stem with a ring."""
    left = [(-0.2, 0.0), (-0.17, 0.4), (-0.28, 0.82), (-0.1, 0.95)]
    stem = curve([*left, *mirrored(left)[::-1]], closed=True)
    pen.fill(ink.light, stem)
    pen.shade(pen.region(stem), 0.28, 0.2)
    hem = [(0.3, 0.48), (0.1, 0.44), (0, 0.5), (-0.1, 0.44), (-0.3, 0.48)]
    skirt = curve([(-0.19, 0.3), (0.19, 0.3), *hem], closed=True)
    pen.fill(ink.second, skirt)
    under = ellipse(0, 0.06, 0.86, 0.2)
    pen.fill(ink.second, under)
    gills = [points([(x * 0.3, -0.1), (x, 0.3)]) for x in np.linspace(-0.85, 0.85, 19)]
    pen.stroke(ink.dark, 0.022, *gills, inside=pen.region(under), opacity=0.5)
    dome = [(-0.93, 0.05), (-0.8, -0.42), (-0.42, -0.8), (0, -0.9), (0.42, -0.8), (0.8, -0.42), (0.93, 0.05)]
    cap = curve([*dome, (0.5, 0.0), (0, -0.03), (-0.5, 0.0)], closed=True)
    pen.fill(ink.main, cap)
    region = pen.region(cap)
    spots = [(-0.5, -0.32, 0.16), (0.05, -0.55, 0.19), (0.5, -0.28, 0.15), (-0.1, -0.17, 0.12)]
    spots += [(-0.77, -0.08, 0.09), (0.8, -0.05, 0.1), (-0.28, -0.72, 0.09), (0.36, -0.66, 0.08)]
    for x, y, radius in spots:
        size = radius * rng.uniform(0.8, 1.15)
        dx, dy = rng.uniform(-0.04, 0.04, 2)
        pen.fill(ink.light, ellipse(x + dx, y + dy, size * (1 - 0.3 * abs(x)), size * 0.9), inside=region)
    pen.shade(region, 0.32, 0.28)


def cactus(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a potted cactus: ribs, spines, two arms, a bloom."""
    trunk = curve([(-0.27, 0.6), (-0.29, -0.1), (-0.25, -0.65), (0, -0.85), (0.25, -0.65), (0.29, -0.1), (0.27, 0.6)])
    left = curve([(-0.1, 0.2), (-0.5, 0.2), (-0.66, 0.06), (-0.66, -0.28)])
    right = curve([(0.1, -0.02), (0.46, -0.04), (0.6, -0.18), (0.6, -0.52)])
    lift = rng.uniform(-0.08, 0.08)
    arms = (moved(left, 0, lift), moved(right, 0, -lift))
    pen.stroke(ink.main, 0.25, *arms)
    pen.fill(ink.main, trunk)
    region = pen.ink.astype(bool)
    ribs = [curve([(x * 0.5, -0.8), (x, -0.4), (x, 0.6)]) for x in (-0.19, -0.065, 0.065, 0.19)]
    pen.stroke(ink.dark, 0.025, *ribs, *arms, inside=region, opacity=0.55)
    ticks = []
    for x in (-0.25, -0.13, 0.0, 0.13, 0.25):
        for y in np.arange(-0.7, 0.5, 0.16):
            tick = points([(x - 0.035, y - 0.03), (x, y), (x + 0.035, y - 0.03)])
            ticks.append(moved(tick, 0, 0.08 * (round(x * 8) % 2)))
    pen.stroke(ink.light, 0.02, *ticks, inside=region)
    pen.shade(region, 0.28, 0.16)
    for angle in (-50, -17, 17, 50):
        pen.fill(ink.second, moved(rotated(ellipse(0, -0.1, 0.055, 0.11), angle), 0, -0.8))
    pen.fill(ink.trim, ellipse(0, -0.82, 0.06))
    pot = points([(-0.4, 0.58), (0.4, 0.58), (0.3, 0.98), (-0.3, 0.98)])
    pen.fill(ink.second, pot)
    zigzag = points([(x, 0.76 + 0.07 * (i % 2)) for i, x in enumerate(np.linspace(-0.42, 0.42, 11))])
    pen.stroke(ink.main, 0.035, zigzag, inside=pen.region(pot))
    pen.shade(pen.region(pot), 0.22, 0.2)
    pen.fill(ink.trim, box(-0.46, 0.5, 0.46, 0.63))


def ladybird(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a ladybird from above: dotted wing cases, dark head, legs and feelers."""
    legs = [
        curve([(0.45, y), (0.82, y - 0.1 + 0.14 * i), (0.94, y + 0.02 + 0.2 * (i - 0.6))])
        for i, y in enumerate((-0.25, 0.15, 0.5))
    ]
    feelers = [curve([(0.12, -0.7), (0.2, -0.88), (0.36, -0.96)])]
    pen.stroke(ink.dark, 0.06, *legs, *map(mirrored, legs))
    pen.stroke(ink.dark, 0.035, *feelers, *map(mirrored, feelers))
    pen.fill(ink.dark, ellipse(0, -0.55, 0.36, 0.3))
    pen.fill(ink.light, ellipse(0.2, -0.62, 0.09, 0.075), ellipse(-0.2, -0.62, 0.09, 0.075))
    case = curve([(0, -0.52), (0.42, -0.42), (0.68, 0.08), (0.52, 0.66), (0.2, 0.88), (0, 0.9)])
    back = np.concatenate([case, mirrored(case)[::-1]])
    pen.fill(ink.main, back)
    region = pen.region(back)
    pen.fill(ink.dark, ellipse(0, -0.48, 0.15, 0.15), inside=region)
    dots = [(0.3, -0.2, 0.11), (0.48, 0.16, 0.1), (0.22, 0.24, 0.13), (0.34, 0.56, 0.11), (0.11, 0.68, 0.08)]
    for x, y, radius in dots:
        dot = ellipse(x, y, radius * rng.uniform(0.85, 1.15))
        pen.fill(ink.dark, dot, mirrored(dot), inside=region)
    pen.stroke(ink.dark, 0.035, points([(0, -0.5), (0, 0.9)]), inside=region)
    pen.shade(region, 0.34, 0.26)
    pen.fill((255, 255, 255), ellipse(-0.3, -0.26, 0.06, 0.13, tilt=35), inside=region, opacity=0.55)


def flower(pen: Pen, ink: Ink, rng: np.random.Generator) -> None:
    """Draw a flower: two rings of veined petals, a seeded heart, a stem with leaves."""
    middle = np.array((0.0, -0.35))
    sway = rng.uniform(-0.12, 0.12)
    pen.stroke(ink.trim, 0.075, curve([(0, -0.3), (sway, 0.3), (0, 0.96)]))
    for side, y in ((1, 0.62), (-1, 0.78)):
        leaf = curve([(0, 0), (0.2, -0.2), (0.5, -0.24), (0.36, 0.02), (0.14, 0.08)], closed=True)
        place = np.array((sway * 0.5, y))
        pen.fill(ink.trim, leaf * (side, 1) + place)
        pen.shade(pen.region(leaf * (side, 1) + place), 0.2, 0.1)
        veins = [(0, 0.02), (0.46, -0.2)], [(0.18, -0.06), (0.2, -0.18)], [(0.3, -0.12), (0.36, 0)]
        pen.stroke(ink.dark, 0.018, *(points(vein) * (side, 1) + place for vein in veins), opacity=0.5)
    count = int(rng.integers(7, 11))
    petal = curve([(0, 0), (0.13, -0.26), (0.12, -0.5), (0, -0.6), (-0.12, -0.5), (-0.13, -0.26)], closed=True)
    for colour, offset, size in ((ink.second, 0.5, 1.0), (ink.main, 0.0, 0.92)):
        for i in range(count):
            angle = 360 * (i + offset) / count
            shape = rotated(petal * size * (9 / count, 1), angle) + middle
            pen.fill(colour, shape)
            pen.shade(pen.region(shape), 0.16, 0.1)
            lines = [points([(x * 0.4, -0.2), (x, -0.44)]) * size for x in (-0.05, 0, 0.05)]
            pen.stroke(ink.dark, 0.014, *(rotated(line, angle) + middle for line in lines), opacity=0.45)
    heart = moved(ellipse(0, 0, 0.21), *middle)
    pen.fill(ink.trim, heart)
    golden = np.deg2rad(137.508)  # the angle at which seeds pack without gaps
    order = np.arange(1, 34)
    way = np.stack([np.cos(order * golden), np.sin(order * golden)], axis=1)
    spiral = middle + 0.034 * np.sqrt(order)[:, None] * way
    seeds = [moved(ellipse(0, 0, 0.018), x, y) for x, y in spiral]
    pen.fill(ink.dark, *seeds, opacity=0.75)
    pen.shade(pen.region(heart), 0.24, 0.12)
