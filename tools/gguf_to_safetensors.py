"""Turn a GGUF file into a transformers checkpoint (safetensors, fast tokenizer).

Example: python tools/gguf_to_safetensors.py SmolLM2-135M-Instruct.Q4_1.gguf \
    pretrained/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from examples.smollm2.gguf import convert_gguf
from internvl_chat.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, report; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf_path", help="single-file GGUF of a Llama-type model")
    parser.add_argument("output_dir", help="a new or empty directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert_gguf(arguments.gguf_path, arguments.output_dir, dtype=arguments.dtype)
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
