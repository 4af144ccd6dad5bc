"""``internvl-chat plan``: whether a training fits, and how long it takes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from internvl_chat.cli.options import HELP, Json, verb_app
from internvl_chat.train.planned_machine import PlannedMachine, planned_machine

app = verb_app()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, **HELP},
)
def plan(
    context: typer.Context,
    num_gpus: Annotated[
        int | None,
        typer.Option(
            "--num_gpus", "--num-gpus", help="Of the run, over all machines.", metavar="N"
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="A name (H100, A100-SXM4-40GB), or its memory in GiB.", metavar="NAME"),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Model FLOPs over the GPU's peak, 0 to 1; measured ones by default."),
    ] = None,
    sample_tokens: Annotated[
        int | None,
        typer.Option(
            "--sample_tokens",
            "--sample-tokens",
            help="Of samples that cannot be counted (default: an image's and 256).",
            metavar="N",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a training needs: memory by part, steps, hours, disk, and what to change.

    Example: internvl-chat plan --model_name_or_path InternVL-Chat-V1-2 --meta_path
    shell/data/internvl_1_2_finetune.json --num_gpus 8 --gpu H100 --deepspeed zero3

    Takes the arguments of internvl-chat train, a run file first or not, and checks them as it does.
    No weight and no image is read: a preset's name is a model, and annotations may be missing.

    Exit codes: 0 it fits, 1 it does not, 2 wrong use, 3 the data's description is wrong.
    """
    machine = _machine(gpu, num_gpus)

    from internvl_chat.train.plan_report import as_json as report
    from internvl_chat.train.plan_report import as_text
    from internvl_chat.train.planning import plan_run

    run = plan_run(context.args, machine, mfu=mfu, sample_tokens=sample_tokens)
    if as_json:
        typer.echo(json.dumps(report(run), ensure_ascii=False))
    else:
        typer.echo(as_text(run))
    raise typer.Exit(0 if run.fits(run.memory) else 1)


def _machine(gpu: str | None, num_gpus: int | None) -> PlannedMachine:
    """What was said, or the GPUs of this machine."""
    if gpu is not None:
        return planned_machine(gpu, 1 if num_gpus is None else num_gpus)

    import torch

    from internvl_chat.errors import ConfigError

    if not torch.cuda.is_available():
        raise ConfigError(
            "is missing, and this machine has no GPU",
            where="--gpu",
            fix="Give a name (--gpu H100), or its memory in GiB (--gpu 80).",
        )
    count = torch.cuda.device_count() if num_gpus is None else num_gpus
    name = torch.cuda.get_device_name()
    try:
        return planned_machine(name, count)
    except ConfigError:  # a card that nobody has written down, or a part of one
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return planned_machine(f"{memory:.1f}", count)
