"""A real LLM learns to see: SmolLM2-135M-Instruct behind the tiny model's vision tower.

``sh shell/demo/smollm2_lora.sh`` runs the parts: GGUF to safetensors (:mod:`.gguf`, also
``tools/gguf_to_safetensors.py``), data, the projector's start, two recipes, evaluation. Each is a
command of its own too, e.g. ``python -m examples.smollm2.data --help``. docs/real_llm.md tells why
it is built so.
"""
