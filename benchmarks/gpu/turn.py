"""Our trainer, imported at once and begun when it is its turn.

    python -m benchmarks.gpu.turn ARGUMENTS_OF_THE_TRAINER

Rows are measured one at a time, but importing takes as long as training some steps does: all start
side by side, and each begins when its standard input is closed.
"""

from __future__ import annotations

import sys


def wait_for_turn() -> None:
    """Import what a run needs, without touching the device; then wait."""
    import internvl_chat.train.finetune  # noqa: F401

    sys.stdin.read()


def main(argv: list[str]) -> int:
    """Returns the trainer's exit code."""
    wait_for_turn()
    from internvl_chat.train.finetune import main as train

    return train(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
