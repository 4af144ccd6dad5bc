"""The projector between a vision tower and a language model, built and saved outside a chat model.

``N`` images, ``K`` image tokens of each, ``C`` channels of a shuffled patch, ``D`` width of the
language model.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from internvl_chat.model.modeling_intern_vit import InternVisionModel
from internvl_chat.model.modeling_internvl_chat import pixel_shuffle

DOWNSAMPLE_RATIO = 0.5


def build_projector(channels: int, width: int) -> nn.Sequential:
    """C to D, with the layers and the parameter names of ``InternVLChatModel.mlp1``."""
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width)
    )


def shuffled_patches(tower: InternVisionModel, pixel_values: Tensor) -> Tensor:
    """(N, 3, S, S) to (N, K, C): what the projector gets of each image, in the model's order."""
    patches = tower(pixel_values).last_hidden_state[:, 1:]  # without the class token
    side = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side, side))
    return pixel_shuffle(grid, DOWNSAMPLE_RATIO, version="v1").flatten(1, 2)


def save_projector(projector: nn.Module, path: Path) -> None:
    """Write what ``--mlp_path`` takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"mlp1.{name}": value for name, value in projector.state_dict().items()}, path)
