"""How many tiles an image is cut into, from its size alone."""

from __future__ import annotations

from functools import lru_cache

from internvl_chat.config import ImageConfig


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with min <= columns * rows <= max, small grids first."""
    found = {
        (i, j)
        for i in range(1, max_tiles + 1)
        for j in range(1, max_tiles + 1)
        if min_tiles <= i * j <= max_tiles
    }
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(
    size: tuple[float, float], *, min_tiles: int, max_tiles: int, image_size: int
) -> tuple[int, int]:
    """The grid (columns, rows) whose ratio is closest to the image's.

    On a tie the larger grid wins only if the image's area exceeds half of the grid's.
    Source: the published InternVL code's ``find_closest_aspect_ratio``.

    Args:
        size: (width, height) of the image.
        min_tiles, max_tiles: bounds of columns * rows.
        image_size: side of a tile in pixels.
    """
    width, height = size
    ratio, half_tile = width / height, 0.5 * image_size * image_size
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(min(min_tiles, max_tiles), max_tiles):
        difference = abs(ratio - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > half_tile * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(size: tuple[float, float], config: ImageConfig, *, max_tiles: int) -> int:
    """How many tiles ``pixels.preprocess`` makes of an image of this (width, height)."""
    if not config.dynamic_image_size:
        return 1
    columns, rows = grid_of(size, config, max_tiles)
    return columns * rows + (config.use_thumbnail and columns * rows > 1)


def least_size(size: tuple[int, int], config: ImageConfig, *, max_tiles: int) -> tuple[int, int]:
    """The (width, height) that ``pixels.preprocess`` shrinks an image of this size to.

    An image decoded no smaller loses nothing that its tiles could show. One that is padded is
    decoded whole: a reduced size is rounded, and its edges would lie elsewhere in the square.
    """
    if config.pad2square:
        return size
    columns, rows = grid_of(size, config, max_tiles) if config.dynamic_image_size else (1, 1)
    return columns * config.image_size, rows * config.image_size


def grid_of(size: tuple[float, float], config: ImageConfig, max_tiles: int) -> tuple[int, int]:
    """The grid (columns, rows) of an image of this (width, height), padding considered."""
    if config.pad2square:
        size = (max(size), max(size))
    return choose_grid(
        size,
        min_tiles=config.min_dynamic_patch,
        max_tiles=max_tiles,
        image_size=config.image_size,
    )
