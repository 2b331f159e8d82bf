"""What can be wrong with a slide: the whole of it, or some of its tiles."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SlideError", "TileError"]


class SlideError(Exception):
    """A slide that cannot be used. ``code`` is the reason in one word: missing, permission, truncated, unreadable,
    unsupported, not_square, assumed_resolution or changed."""

    def __init__(self, code: str, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.code = code
        self.path = Path(path)
        self.message = message

    def __reduce__(self) -> tuple[type[SlideError], tuple[str, Path, str]]:
        # From a worker process it must arrive as it left.
        return type(self), (self.code, self.path, self.message)


class TileError(Exception):
    """Some tiles of a requested area cannot be decoded. ``tiles`` lists (level, column, row)."""

    def __init__(self, path: Path, tiles: list[tuple[int, int, int]], cause: str) -> None:
        super().__init__(
            f"{path}: {len(tiles)} tile(s) cannot be decoded, first (level, column, row) {tiles[0]}: {cause}"
        )
        self.path, self.tiles, self.cause = path, tiles, cause

    def __reduce__(self) -> tuple[type[TileError], tuple[Path, list[tuple[int, int, int]], str]]:
        return type(self), (self.path, self.tiles, self.cause)
