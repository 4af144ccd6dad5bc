"""InternVL-Chat written out in plain tensor arithmetic, from the published description alone.

Shares no code with the package or with transformers: the parity tests compare against it. It
reads the state dict and ``config.json`` of a checkpoint laid out by the original code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class OriginalModel:
    """Logits and loss of a checkpoint, computed row by row, without batching or padding."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], context_id: int) -> None:
        self.config, self.tensors, self.context_id = config, tensors, context_id

    # ------------------------------------------------------------ weights

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        bias = self.tensors.get(f"{name}.bias")
        if f"{name}.lora_A.default.weight" in self.tensors:
            down = self.tensors[f"{name}.lora_A.default.weight"]
            up = self.tensors[f"{name}.lora_B.default.weight"]
            weight = weight + 2.0 * up @ down  # alpha is twice the rank
        out = x @ weight.T
        return out if bias is None else out + bias

    def tower(self, name: str) -> str:
        wrapped = f"{name}.base_model.model."
        return wrapped if any(key.startswith(wrapped) for key in self.tensors) else f"{name}."

    # ------------------------------------------------------------ vision

    def vision_norm(self, x: Tensor, name: str, *, rms: bool) -> Tensor:
        eps = self.config["vision_config"]["layer_norm_eps"]
        if rms:
            x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
            return x * self.tensors[f"{name}.weight"]
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + eps)
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def positions(self, side: int) -> Tensor:
        prefix = self.tower("vision_model") + "embeddings."
        table = self.tensors[prefix + "position_embedding"][0]
        vision = self.config["vision_config"]
        laid_out = vision["image_size"] // vision["patch_size"]
        if side == laid_out:
            return table
        grid = table[1:].reshape(laid_out, laid_out, -1).permute(2, 0, 1)
        return torch.cat([table[:1], bicubic(grid, side).flatten(1).T])

    def encode(self, pixels: Tensor) -> Tensor:
        """(3, S, S) to the selected hidden state (1+P, C)."""
        vision, prefix = self.config["vision_config"], self.tower("vision_model")
        patch, width = vision["patch_size"], vision["hidden_size"]
        side = pixels.shape[-1] // patch
        weight = self.tensors[prefix + "embeddings.patch_embedding.weight"].reshape(width, -1)
        bias = self.tensors[prefix + "embeddings.patch_embedding.bias"]
        tokens = [
            weight @ pixels[:, r * patch :, c * patch :][:, :patch, :patch].reshape(-1) + bias
            for r in range(side)
            for c in range(side)
        ]
        first = self.tensors[prefix + "embeddings.class_embedding"].reshape(1, width)
        x = torch.cat([first, torch.stack(tokens)]) + self.positions(side)
        states = [x]
        for index in range(vision["num_hidden_layers"]):
            layer = f"{prefix}encoder.layers.{index}."
            rms = vision["norm_type"] == "rms_norm"
            branch = self.vision_attention(self.vision_norm(x, layer + "norm1", rms=rms), layer)
            x = x + branch * self.tensors[layer + "ls1"]
            branch = self.linear(self.vision_norm(x, layer + "norm2", rms=rms), layer + "mlp.fc1")
            branch = self.linear(gelu(branch), layer + "mlp.fc2")
            x = x + branch * self.tensors[layer + "ls2"]
            states.append(x)
        return states[self.config["select_layer"]]

    def vision_attention(self, x: Tensor, layer: str) -> Tensor:
        heads = self.config["vision_config"]["num_attention_heads"]
        width = x.shape[-1]
        qkv = self.linear(x, layer + "attn.qkv")
        query, key, value = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        if self.config["vision_config"]["qk_normalization"]:
            query = self.vision_norm(query, layer + "attn.q_norm", rms=True)
            key = self.vision_norm(key, layer + "attn.k_norm", rms=True)
        size = width // heads
        out = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            out.append(softmax(scores) @ value[:, part])
        return self.linear(torch.cat(out, dim=-1), layer + "attn.proj")

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(3, S, S) to (K, D)."""
        x = self.encode(pixels)[1:]
        side = math.isqrt(len(x))
        x = x.reshape(side, side, -1)
        rows = []
        for a in range(side // 2):
            for b in range(side // 2):
                # v1 reads its grid transposed: output (a, b) is the square at row b, column a.
                r, c = (b, a) if self.config["ps_version"] == "v1" else (a, b)
                square = [x[2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)]
                rows.append(torch.cat(square))
        x = torch.stack(rows)
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
        x = x * self.tensors["mlp1.0.weight"] + self.tensors["mlp1.0.bias"]
        return self.linear(gelu(self.linear(x, "mlp1.1")), "mlp1.3")

    # ------------------------------------------------------------ language

    def rms(self, x: Tensor, name: str) -> Tensor:
        eps = self.config["llm_config"]["rms_norm_eps"]
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * self.tensors[f"{name}.weight"]

    def rotate(self, x: Tensor) -> Tensor:
        """(T, size): the first half's coordinate i turns with the second half's."""
        half = x.shape[-1] // 2
        theta = self.config["llm_config"]["rope_theta"]
        speeds = torch.tensor([theta ** (-i / half) for i in range(half)], dtype=x.dtype)
        angles = torch.arange(len(x), dtype=x.dtype)[:, None] * speeds
        cos, sin = torch.cos(angles), torch.sin(angles)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def language_attention(self, x: Tensor, layer: str) -> Tensor:
        llm = self.config["llm_config"]
        heads, groups = llm["num_attention_heads"], llm["num_key_value_heads"]
        size = llm["hidden_size"] // heads
        query, key, value = (
            self.linear(x, f"{layer}self_attn.{name}_proj") for name in ("q", "k", "v")
        )
        future = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), diagonal=1)
        out = []
        for head in range(heads):
            shared = head // (heads // groups)
            mine, theirs = (
                slice(head * size, head * size + size),
                slice(shared * size, shared * size + size),
            )
            scores = self.rotate(query[:, mine]) @ self.rotate(key[:, theirs]).T / math.sqrt(size)
            out.append(softmax(scores.masked_fill(future, -math.inf)) @ value[:, theirs])
        return self.linear(torch.cat(out, dim=-1), layer + "self_attn.o_proj")

    def row_logits(self, ids: Tensor, features: Tensor) -> Tensor:
        """(T,) ids and (slots, D) features to (T, V)."""
        prefix = self.tower("language_model")
        x = self.tensors[prefix + "model.embed_tokens.weight"][ids].clone()
        x[ids == self.context_id] = features
        for index in range(self.config["llm_config"]["num_hidden_layers"]):
            layer = f"{prefix}model.layers.{index}."
            x = x + self.language_attention(self.rms(x, layer + "input_layernorm"), layer)
            inner = self.rms(x, layer + "post_attention_layernorm")
            gate = self.linear(inner, layer + "mlp.gate_proj")
            gate = gate / (1 + torch.exp(-gate))
            up = self.linear(inner, layer + "mlp.up_proj")
            x = x + self.linear(gate * up, layer + "mlp.down_proj")
        return self.linear(self.rms(x, prefix + "model.norm"), prefix + "lm_head")

    # ------------------------------------------------------------ batch

    def logits(self, rows: list[Tensor], tiles: Tensor, flags: Tensor) -> list[Tensor]:
        """For each row of ids (T_i,) its (T_i, V); tiles in reading order, flag 1 for real ones."""
        real = [tile for tile, flag in zip(tiles, flags.tolist(), strict=True) if flag == 1]
        width = self.config["llm_config"]["hidden_size"]
        none = tiles.new_empty(0, width)
        features = torch.cat([none, *(self.image_tokens(tile) for tile in real)])
        out, used = [], 0
        for ids in rows:
            count = int((ids == self.context_id).sum())
            out.append(self.row_logits(ids, features[used : used + count]))
            used += count
        assert used == len(features)
        return out

    @staticmethod
    def loss(logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Mean over all supervised tokens of the batch."""
        losses = [
            torch.logsumexp(row[t], dim=0) - row[t, wanted[t + 1]]
            for row, wanted in zip(logits, labels, strict=True)
            for t in range(len(wanted) - 1)
            if wanted[t + 1] != -100
        ]
        return torch.stack(losses).mean()


def softmax(scores: Tensor) -> Tensor:
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return weights / weights.sum(dim=-1, keepdim=True)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, as image libraries have it."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic(grid: Tensor, side: int) -> Tensor:
    """(C, s, s) to (C, side, side), pixel centres aligned, edges repeated."""
    old = grid.shape[-1]
    matrix = torch.zeros(side, old, dtype=grid.dtype)
    for out in range(side):
        centre = (out + 0.5) * old / side - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[out, min(max(source, 0), old - 1)] += cubic(centre - source)
    return torch.einsum("or,crs,ps->cop", matrix, grid, matrix)
