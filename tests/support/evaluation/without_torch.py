"""``python -m tests.support.evaluation.without_torch FILE``: a command a line, no model library.

Each line of FILE is a JSON array of arguments of ``internvl-chat``. Prints an array of exit codes;
importing torch or transformers meanwhile ends it with the name of what asked for it.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import io
import json
import sys
from pathlib import Path
from typing import Any


class _Refused(importlib.abc.MetaPathFinder):
    """Refuses the libraries that take seconds to import."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Raise for them, leave everything else to others."""
        if fullname.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(f"{fullname} is imported")


def main() -> None:
    sys.meta_path.insert(0, _Refused())
    from internvl_chat.cli import main as command

    codes = []
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        with contextlib.redirect_stdout(io.StringIO()):
            codes.append(command(json.loads(line)))
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
