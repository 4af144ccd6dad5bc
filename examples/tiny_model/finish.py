"""Turn a trained demo model into the shipped one: bf16 weights, held-out accuracies, run card.

python -m examples.tiny_model.finish --checkpoint WORK/sft --data WORK/data --out DIR
"""

import argparse
import importlib.metadata
import json
import logging
import platform
from pathlib import Path
from typing import Any

import torch

from examples.annotations import write_json
from examples.durations import read_seconds
from examples.tiny_model.evaluate import evaluate, format_table
from examples.tiny_model.scoring import TARGETS
from internvl_chat.checkpoint.save import save_checkpoint_files
from internvl_chat.checkpoint.tokenizer import load_tokenizer
from internvl_chat.model.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "deepspeed", "sentencepiece", "pillow", "numpy")

WEAK = 0.7
"""Share of right answers below which the card warns of a skill: half of many is guessing."""

CARD = """\
# internvl-chat-tiny

A very small InternVL-Chat-V1.2 (InternViT, pixel shuffle, MLP, Llama; {parameters:.1f} M weights)
that looks at generated 112-pixel images: coloured shapes, bar charts, printed words and numbers.
It exists for demonstrations and tests, and knows nothing else of the world. It has seen no
handwritten digit; `shell/quickstart.sh` teaches it those.

Made by `sh shell/demo/pretrain_tiny.sh` from seed {seed}: a vision tower and a projector trained to
give the label embeddings of what each image token shows ({vision_steps} steps of 32 images), a
language model trained on conversations about them ({language_steps} steps of 16 records),
then the three stitched and fine-tuned on {records} records by the first recipe of V1-2. Everything
it saw was drawn by `examples/tiny_model/`.

| held-out questions | accuracy | target |
|---|---|---|
{rows}

{weak}Held-out images are new; words and numbers of two and more digits on held-out signs never
occurred in training. `run.json` has the accuracy of every skill, versions and durations.

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor
import internvl_chat  # or trust_remote_code=True

path = "pretrained/internvl-chat-tiny"
model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(path)
image = Image.open("examples/image2.jpg").resize((112, 112))
pixels = CLIPImageProcessor.from_pretrained(path)(images=image, return_tensors="pt").pixel_values
model.chat(tokenizer, pixels, "How many shapes are there?", dict(max_new_tokens=64))
```
"""


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of each child, and of all."""
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    return counts | {"total": sum(counts.values())}


def trainer_facts(checkpoint: Path) -> dict[str, Any]:
    """Steps and final loss of the fine-tuning, where the trainer wrote them."""
    path = checkpoint / "trainer_state.json"
    if not path.is_file():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state.get("log_history", []) if "loss" in entry]
    return {"sft_steps": state.get("global_step"), "sft_last_loss": losses[-1] if losses else None}


def weak_skills(skills: dict[str, float]) -> str:
    """A paragraph that names what the model cannot do; empty if there is nothing."""
    weak = [f"`{name}` {value:.0%}" for name, value in skills.items() if value < WEAK]
    return f"Weak skills: {', '.join(weak)}.\n\n" if weak else ""


def write_card(out: Path, run: dict[str, Any]) -> None:
    """Write ``run.json`` and ``README.md``."""
    write_json(out / "run.json", run)
    rows = "\n".join(
        f"| {group} | {value:.1%} | {f'{TARGETS[group]:.0%}' if group in TARGETS else ''} |"
        for group, value in run["heldout"]["groups"].items()
    )
    text = CARD.format(
        rows=rows,
        weak=weak_skills(run["heldout"]["skills"]),
        parameters=run["parameters"]["total"] / 1e6,
        **{key: run[key] for key in ("seed", "records", "vision_steps", "language_steps")},
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def finish(args: argparse.Namespace) -> dict[str, Any]:
    """Save in bf16, load again, evaluate, write the card; returns what ``run.json`` holds."""
    tokenizer = load_tokenizer(str(args.checkpoint))
    trained = InternVLChatModel.from_pretrained(args.checkpoint, dtype=torch.float32)
    args.out.mkdir(parents=True, exist_ok=True)
    save_checkpoint_files(trained, tokenizer, args.out, dtype=torch.bfloat16)
    # What is measured is what is shipped: the rounded weights, computing in fp32.
    heldout = evaluate(args.out, sorted((args.data / "heldout").glob("*.jsonl")))
    logger.info("%s", format_table(heldout))
    missed = {k: v for k, v in TARGETS.items() if heldout["groups"].get(k, 0.0) < v}
    if missed:
        logger.warning("below target: %s", ", ".join(f"{k} < {v:.0%}" for k, v in missed.items()))
    run = {
        "seed": args.seed,
        "records": args.records,
        "vision_steps": args.vision_steps,
        "language_steps": args.language_steps,
        **trainer_facts(args.checkpoint),
        "parameters": count_parameters(trained),
        "heldout": heldout,
        "seconds": read_seconds(args.seconds),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    write_card(args.out, run)
    return run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="fine-tuning's result")
    parser.add_argument("--data", type=Path, required=True, help="with heldout/*.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished model")
    parser.add_argument("--seconds", type=Path, default=Path("seconds.txt"), help="durations")
    for name in ("seed", "records", "vision_steps", "language_steps"):
        parser.add_argument(f"--{name}", type=int, default=0, help="for the card")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    finish(args)


if __name__ == "__main__":
    main()
