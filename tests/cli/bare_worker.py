"""A machine that lacks what has no build for it: the packages of the first argument do not import.

``python bare_worker.py decord,deepspeed JSON``: the command lines in JSON are run, one after the
other; their exit codes and what they said on stderr are printed, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: "import of … halted"

from internvl_chat.cli import main  # noqa: E402 - not before

for command in json.loads(sys.argv[2]):
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        code = main(command)
    found = {"code": code, "stderr": said.getvalue(), "stdout": shown.getvalue()}
    sys.__stdout__.write(json.dumps(found) + "\n")
