"""One box type for the whole project: zyx, half-open, voxels at a stated resolution."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from lake.errors import BadInput

Zyx = tuple[int, int, int]


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels, axis order z, y, x.

    Parameters
    ----------
    start, stop : (z, y, x) int
        `start <= stop` on each axis, else `BadInput`.
    """

    start: Zyx
    stop: Zyx

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise BadInput(f"box {self} ends before it starts", fix="give start <= stop on z, y and x")

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))

    @classmethod
    def parse(cls, text: str) -> "Box":
        """Read `z0:z1,y0:y1,x0:x1`; `BadInput` quotes what could not be read."""
        try:
            (z0, z1), (y0, y1), (x0, x1) = (map(int, part.split(":")) for part in text.split(","))
        except ValueError as error:
            raise BadInput(f"box {text!r} cannot be read", fix="write z0:z1,y0:y1,x0:x1 in voxels") from error
        return cls((z0, y0, x0), (z1, y1, x1))

    @property
    def shape(self) -> Zyx:
        """Edge lengths (z, y, x)."""
        (z0, y0, x0), (z1, y1, x1) = self.start, self.stop
        return z1 - z0, y1 - y0, x1 - x0

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array whose origin is voxel (0, 0, 0)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grow(self, halo: Zyx) -> "Box":
        """Widen by `halo` voxels on both sides of each axis; may become negative, see `clip`."""
        return Box(_map(self.start, halo, -1), _map(self.stop, halo, 1))

    def shift(self, offset: Zyx) -> "Box":
        """Move by `offset` voxels."""
        return Box(_map(self.start, offset, 1), _map(self.stop, offset, 1))

    def clip(self, bounds: "Box") -> "Box":
        """Cut to `bounds`; an empty box at the edge of `bounds` if they do not meet."""
        start = tuple(min(max(a, lo), hi) for a, lo, hi in zip(self.start, bounds.start, bounds.stop, strict=True))
        stop = tuple(max(min(b, hi), a) for b, hi, a in zip(self.stop, bounds.stop, start, strict=True))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def within(self, outer: "Box") -> tuple[slice, slice, slice]:
        """Give this box as an index into an array that holds `outer`."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))
        return z, y, x

    def contains(self, other: "Box") -> bool:
        """Tell whether `other` lies wholly inside."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            d <= b for b, d in zip(self.stop, other.stop, strict=True)
        )

    def meets(self, other: "Box") -> bool:
        """Tell whether the two share a voxel."""
        return all(
            max(a, c) < min(b, d) for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True)
        )

    def blocks(self, size: Zyx) -> Iterator[tuple[Zyx, "Box"]]:
        """Cut into blocks of `size` on the grid whose origin is this box's start, in C order.

        Yields
        ------
        (index, box)
            The block's grid index (z, y, x) and its box, cut at the far side.
        """
        counts = [range(-(-n // s)) for n, s in zip(self.shape, size, strict=True)]
        for z, y, x in product(*counts):
            index = (z, y, x)
            start = tuple(o + i * s for o, i, s in zip(self.start, index, size, strict=True))
            stop = tuple(min(a + s, e) for a, s, e in zip(start, size, self.stop, strict=True))
            yield index, Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _map(point: Zyx, delta: Zyx, sign: int) -> Zyx:
    return point[0] + sign * delta[0], point[1] + sign * delta[1], point[2] + sign * delta[2]
