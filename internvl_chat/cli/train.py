"""``internvl-chat train``: the trainer's own command line."""

from __future__ import annotations

import typer

from internvl_chat.cli.options import verb_app
from internvl_chat.train.flags import HELP_ALL, HELP_FLAGS, help_text

app = verb_app()


@app.command(
    add_help_option=False,  # the trainer has its own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Fine-tune; the same arguments as internvl_chat/train/finetune.py, or one YAML/JSON file.

    Example: internvl-chat train --model_name_or_path pretrained/internvl-chat-tiny
    --meta_path examples/samples/meta.json
    """
    words = set(context.args)
    if words & HELP_FLAGS and HELP_ALL not in words:
        typer.echo(help_text(), nl=False)
        return

    from internvl_chat.train.finetune import main as finetune
    from internvl_chat.train.launched import SAVED, leave_at_once

    code = finetune(context.args, assumes=True)
    if code >= SAVED:  # a signal: threads may be left in the middle of something
        leave_at_once(code)
    raise typer.Exit(code)
