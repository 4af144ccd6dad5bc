"""How long the parts of a run took: the file that the scripts in shell/demo add a line to."""

from pathlib import Path


def read_seconds(path: Path) -> dict[str, int]:
    """Seconds by part, from lines of ``name seconds``; empty without a file."""
    if not path.is_file():
        return {}
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: int(seconds) for name, seconds in pairs}
