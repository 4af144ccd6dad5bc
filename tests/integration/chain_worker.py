"""Trains one run and notes what the trained model answers, before anything is reloaded.

``python -m tests.integration.chain_worker probe.json answers.json ARGUMENTS…``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from internvl_chat.errors import UserError
from internvl_chat.train.checkpoints import CheckpointWriter
from internvl_chat.train.distributed import init_distributed, shut_down
from internvl_chat.train.finetune import run
from internvl_chat.train.parsing import parse
from internvl_chat.train.reports import set_up_logging
from internvl_chat.train.signals import EndingSignals
from internvl_chat.train.status import RunStatus
from tests.support.greedy import tokens


def main() -> None:
    probe = json.loads(Path(sys.argv[1]).read_text())
    state = init_distributed(timeout_seconds=120)
    set_up_logging(state)
    save_final = CheckpointWriter.save_final

    def note_and_save(self: CheckpointWriter, model: Any, directory: Path) -> None:
        model.eval()
        Path(sys.argv[2]).write_text(json.dumps(tokens(model, probe)))
        save_final(self, model, directory)

    CheckpointWriter.save_final = note_and_save  # type: ignore[method-assign]
    try:
        args = parse(sys.argv[3:], device=state.device)
        run(args, state, RunStatus("", rank=state.rank), EndingSignals(lambda number: None))
    except UserError as err:
        sys.exit(f"{err.exit_code} {err}")
    finally:
        shut_down()


if __name__ == "__main__":
    main()
