"""How a model is used: commands and code that run as they stand, beside its folder."""

from __future__ import annotations

import json
import shlex
from typing import Literal

Kind = Literal["whole", "adapter", "bare adapter", "native", "native adapter", "published"]
"""Our own code beside it, and beside PEFT's files; PEFT's files alone; transformers' own class, and
PEFT's files for that; a published checkpoint's code."""

_COMMAND = """```sh
internvl-chat chat --model {typed} --image image.jpg "What is in the image?"
internvl-chat serve --model {typed}
```"""
_CHAT = """```python
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor

path = {path}  # this folder, or its name on the hub
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
size = model.config.force_image_size or model.config.vision_config.image_size
image = Image.open("image.jpg").convert("RGB").resize((size, size))
processor = CLIPImageProcessor.from_pretrained(path)
pixel_values = processor(images=image, return_tensors="pt").pixel_values.to(model.dtype)
print(model.chat(tokenizer, pixel_values, "What is in the image?", dict(max_new_tokens=64)))
```"""
_PEFT = """```python
from peft import PeftConfig, PeftModel
from transformers import {auto}

revision = PeftConfig.from_pretrained({path}).revision  # of a base on the hub
base = {auto}.from_pretrained({base}, revision=revision{remote})
model = PeftModel.from_pretrained(base, {path}).eval()
```"""
_NATIVE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

path = {path}  # this folder, or its name on the hub
processor = AutoProcessor.from_pretrained(path)  # needs torchvision
model = AutoModelForImageTextToText.from_pretrained(path).eval()
part = [{{"type": "image", "url": "image.jpg"}}, {{"type": "text", "text": "What is in it?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": part}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(dtype=model.dtype)
ids = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(ids, skip_special_tokens=True))
```"""


def usage(kind: Kind, path: str, base: str) -> str:
    """The section's text.

    Args:
        kind: of the files.
        path: the folder's name.
        base: an adapter's base, as it is publicly named.
    """
    quoted = json.dumps(path, ensure_ascii=False)
    if kind == "native":
        return f"With transformers' own class:\n\n{_NATIVE.format(path=quoted)}"
    peft = _peft(quoted, json.dumps(base, ensure_ascii=False), is_native=kind == "native adapter")
    if kind == "native adapter":
        return peft
    command = f"With internvl-chat:\n\n{_COMMAND.format(typed=shlex.quote(path))}"
    chat = _CHAT.format(path=quoted)
    if kind == "published":
        return f"{command}\n\nWith the published code and its transformers, 4.37.2:\n\n{chat}"
    newer = "With transformers 4.48 or newer, one tile of an image (the model's code lies beside "
    if kind == "bare adapter":
        return f"{command}\n\n{peft}"
    if kind == "whole":
        return f"{command}\n\n{newer}its weights):\n\n{chat}"
    return f"{command}\n\n{newer}the adapter, and loads its base):\n\n{chat}\n\n{peft}"


def _peft(path: str, base: str, *, is_native: bool) -> str:
    """With quoted names."""
    auto = "AutoModelForImageTextToText" if is_native else "AutoModel"
    remote = "" if is_native else ", trust_remote_code=True"
    return f"With PEFT alone:\n\n{_PEFT.format(path=path, base=base, auto=auto, remote=remote)}"
