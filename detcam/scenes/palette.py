"""Harmonious random colours in OKLCH, where equal lightness looks equally light.

OKLCH is the polar form of OKLab (B. Ottosson, 2020, "A perceptual color space for image processing").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

# Hue steps of the classic colour schemes, in degrees: analogous, split complementary, triad, square.
_SCHEMES = ((0, 28, 56, 200), (0, 150, 210, 30), (0, 120, 240, 60), (0, 90, 180, 270))


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Return the sRGB colour, three ints in 0..255, of an OKLCH triple; `hue` is in degrees."""
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.array(
        (
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        )
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * encoded).astype(int).tolist()
    return red, green, blue


@dataclass(frozen=True)
class Ink:
    """The colours of an object: two vivid colours, a trim colour, and a dark and a light neutral."""

    main: Colour
    second: Colour
    trim: Colour
    dark: Colour
    light: Colour


@dataclass(frozen=True)
class Palette:
    """A colour scheme shared by everything in a scene: `hues` in degrees."""

    hues: tuple[float, ...]

    @classmethod
    def random(cls, rng: np.random.Generator) -> Palette:
        """A classic scheme at a random position on the colour wheel."""
        scheme = _SCHEMES[rng.integers(len(_SCHEMES))]
        return cls(tuple((rng.uniform(0, 360) + np.array(scheme, float)) % 360))

    def hue(self, rng: np.random.Generator, spread: float = 14.0) -> float:
        """A hue of the scheme with a small random shift."""
        return float(rng.choice(self.hues) + rng.uniform(-spread, spread))

    def ink(self, rng: np.random.Generator) -> Ink:
        """Colours of an object: the same distribution for every class, so colour does not identify a class."""
        main, second, trim = rng.permutation(np.array(self.hues))[:3] + rng.uniform(-14, 14, 3)
        if rng.random() < 0.35:  # near-white: frequent on real balloons and sails
            pale: Colour = oklch(rng.uniform(0.92, 0.97), 0.03, second)
        else:
            pale = oklch(rng.uniform(0.68, 0.86), rng.uniform(0.09, 0.15), second)
        return Ink(
            main=oklch(rng.uniform(0.58, 0.74), rng.uniform(0.11, 0.17), main),
            second=pale,
            trim=oklch(rng.uniform(0.62, 0.84), rng.uniform(0.11, 0.17), trim),
            dark=oklch(rng.uniform(0.28, 0.40), rng.uniform(0.03, 0.08), trim),
            light=oklch(rng.uniform(0.94, 0.975), 0.02, main),
        )
