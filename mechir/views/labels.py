"""Places of labels beside points, so that none is printed over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LETTER, LINE = 6.0, 12.0
"""Pixels that a letter of a label takes across, and a label down."""
POINT = 4.0
"""Pixels around a point that no label covers."""
DISTANCES = (5.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0)
"""Pixels from a point to the nearest edge of its label that are tried, the nearest first."""
ANGLES = (1, 0, 7, 3, 4, 5, 2, 6)
"""The sides that are tried at each distance, in eighths of a turn from the right, counter-clockwise."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    right: float
    bottom: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether two rectangles overlap."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of it that is nearest to another."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def inside(self, width: int, height: int) -> bool:
        """Whether it lies in a plot of this size."""
        return self.left >= 0 and self.bottom >= 0 and self.right <= width and self.top <= height


class Place(NamedTuple):
    """The middle of a label, and where the line from its point ends; NaN where it has no room, or needs no line."""

    x: float = np.nan
    y: float = np.nan
    end_x: float = np.nan
    end_y: float = np.nan


def placed(
    points: Float[np.ndarray, "points 2"], texts: Sequence[str], named: Sequence[bool], width: int, height: int
) -> list[Place]:
    """The places of the labels of the points that are named, in pixels.

    The points farthest from the middle of all come first, for those in the crowd have the least room. A label keeps
    off every other label and every point; one that finds no place is left out.

    Args:
        points: places in the plot, in pixels from its lower left corner.
        texts: the label of each point.
        named: whether a point has its label at all.
        width: of the plot, pixels.
        height: of the plot, pixels.
    """
    places = [Place()] * len(points)
    pixels: list[tuple[float, float]] = [(float(x), float(y)) for x, y in points]
    dots = [Box(x - POINT, x + POINT, y - POINT, y + POINT) for x, y in pixels]
    taken: list[Box] = []
    away = np.hypot(*(points - np.median(points, axis=0)).T) if len(points) else points
    for one in sorted((k for k, wanted in enumerate(named) if wanted), key=lambda k: -away[k]):
        for distance, box in _around(*pixels[one], texts[one]):
            if box.inside(width, height) and not any(box.meets(other) for other in [*taken, *dots]):
                taken.append(box)
                end = box.nearest(*pixels[one]) if distance > DISTANCES[0] else (np.nan, np.nan)
                places[one] = Place((box.left + box.right) / 2, (box.bottom + box.top) / 2, *end)
                break
    return places


def _around(x: float, y: float, text: str) -> list[tuple[float, Box]]:
    """The places of a label around its point with their distances, the best first."""
    wide, tall = LETTER * len(text) / 2, LINE / 2
    boxes = []
    for distance in DISTANCES:
        for eighth in ANGLES:
            across, up = (round(turn(eighth * math.pi / 4), 6) for turn in (math.cos, math.sin))
            middle = x + across * distance + (across > 0) * wide - (across < 0) * wide
            height = y + up * distance + (up > 0) * tall - (up < 0) * tall
            boxes.append((distance, Box(middle - wide, middle + wide, height - tall, height + tall)))
    return boxes
