"""InternViT: norms, layer scale, drop path, position embeddings, hidden states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from internvl_chat import InternVisionConfig, InternVisionModel
from internvl_chat.model.modeling_intern_vit import (
    DropPath,
    InternRMSNorm,
    InternVisionEncoderLayer,
    interpolate_position_embedding,
)
from tests.support.models import VISION, shake


def make_vision(**kwargs: object) -> InternVisionModel:
    torch.manual_seed(0)
    model = InternVisionModel(InternVisionConfig(**{**VISION, **kwargs})).eval()
    shake(model)
    return model


def test_state_dict_names_are_the_published_ones() -> None:
    model = make_vision(num_hidden_layers=1, qkv_bias=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = "encoder.layers.0."
    assert shapes == {
        "embeddings.class_embedding": (1, 1, 32),
        "embeddings.position_embedding": (1, 17, 32),
        "embeddings.patch_embedding.weight": (32, 3, 4, 4),
        "embeddings.patch_embedding.bias": (32,),
        layer + "ls1": (32,),
        layer + "ls2": (32,),
        layer + "attn.qkv.weight": (96, 32),
        layer + "attn.qkv.bias": (96,),
        layer + "attn.proj.weight": (32, 32),
        layer + "attn.proj.bias": (32,),
        layer + "attn.q_norm.weight": (32,),
        layer + "attn.k_norm.weight": (32,),
        layer + "mlp.fc1.weight": (48, 32),
        layer + "mlp.fc1.bias": (48,),
        layer + "mlp.fc2.weight": (32, 48),
        layer + "mlp.fc2.bias": (32,),
        layer + "norm1.weight": (32,),
        layer + "norm2.weight": (32,),
    }
    plain = make_vision(num_hidden_layers=1, norm_type="layer_norm", qk_normalization=False)
    names = {n.removeprefix(layer) for n in plain.state_dict() if n.startswith(layer)}
    assert {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"} <= names
    assert not any("q_norm" in name or "qkv.bias" in name for name in names)


def test_defaults_are_the_6b() -> None:
    config = InternVisionConfig()
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (
        3200,
        25,
        12800,
    )
    assert (config.num_hidden_layers, config.norm_type, config.qk_normalization) == (
        48,
        "rms_norm",
        True,
    )
    assert (config.image_size, config.patch_size, config.layer_norm_eps) == (224, 14, 1e-6)
    assert (config.initializer_factor, config.qkv_bias, config.hidden_act) == (0.1, False, "gelu")


def test_fresh_layer_scales_and_norms() -> None:
    model = InternVisionModel(InternVisionConfig(**VISION, initializer_factor=0.3))
    layer = model.encoder.layers[0]
    assert torch.equal(layer.ls1, torch.full((32,), 0.3))
    assert torch.equal(layer.ls2, torch.full((32,), 0.3))
    assert torch.equal(layer.norm1.weight, torch.ones(32))
    assert 0.015 < layer.mlp.fc1.weight.std() < 0.025


def test_rms_norm_is_fp32_inside_and_weighs_in_the_inputs_dtype() -> None:
    norm = InternRMSNorm(8, eps=1e-6).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    x = torch.randn(3, 8).to(torch.bfloat16) * 5
    wide = x.double()
    scaled = (wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).to(torch.bfloat16)
    assert torch.equal(norm(x), norm.weight * scaled)
    assert norm(x).dtype == torch.bfloat16


def test_qk_norm_runs_over_the_whole_width() -> None:
    """Scaling one head's queries changes the others' normalised queries, too."""
    model = make_vision(num_hidden_layers=1)
    attention = model.encoder.layers[0].attn
    x = torch.randn(1, 5, 32)
    query = attention.qkv(x)[..., :32]
    normed = attention.q_norm(query)
    rms = query.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(normed, query / rms * attention.q_norm.weight)
    assert attention.q_norm.weight.shape == (32,)


def test_block_adds_scaled_branches() -> None:
    model = make_vision(num_hidden_layers=1)
    layer = model.encoder.layers[0]
    x = torch.randn(2, 17, 32)
    middle = x + layer.attn(layer.norm1(x)) * layer.ls1
    expected = middle + layer.mlp(layer.norm2(middle)) * layer.ls2
    torch.testing.assert_close(layer(x), expected)


def test_drop_path_rates_rise_linearly() -> None:
    model = make_vision(num_hidden_layers=5, drop_path_rate=0.4)
    rates = [(layer.drop_path1.rate, layer.drop_path2.rate) for layer in model.encoder.layers]
    assert rates == [(r, r) for r in (0.0, 0.1, 0.2, pytest.approx(0.3), 0.4)]


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 3, 2))
    per_image = out.flatten(1)
    assert torch.equal(per_image.min(1).values, per_image.max(1).values)
    kept = per_image[per_image[:, 0] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3))
    assert 0.72 < len(kept) / 4000 < 0.78
    assert 0.97 < out.mean() < 1.03
    assert torch.equal(drop.eval()(torch.ones(9, 3, 2)), torch.ones(9, 3, 2))


def test_position_embeddings_stretch_bicubic_and_keep_the_class_token() -> None:
    model = make_vision()
    position = model.embeddings.position_embedding
    pixels = torch.randn(2, 3, 24, 16)  # 6 x 4 patches where 4 x 4 are laid out
    patches = F.conv2d(
        pixels,
        model.embeddings.patch_embedding.weight,
        model.embeddings.patch_embedding.bias,
        stride=4,
    )
    grid = position[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 4), mode="bicubic", align_corners=False)
    tokens = (patches + grid).flatten(2).transpose(1, 2)
    first = (model.embeddings.class_embedding + position[:, :1]).expand(2, 1, 32)
    torch.testing.assert_close(model.embeddings(pixels), torch.cat([first, tokens], dim=1))


def test_own_size_uses_the_embeddings_as_they_are() -> None:
    grid = torch.randn(1, 16, 8)
    assert interpolate_position_embedding(grid, 4, 4) is grid


def test_resize_pos_embeddings_equals_stretching_on_the_way() -> None:
    model = make_vision()
    pixels = torch.randn(1, 3, 32, 32)
    before = model(pixels).last_hidden_state
    model.resize_pos_embeddings(16, 32, 4)
    assert model.embeddings.position_embedding.shape == (1, 65, 32)
    assert model.config.image_size == 32
    torch.testing.assert_close(model(pixels).last_hidden_state, before)
    with pytest.raises(ValueError, match="position_embedding has 65 rows; image size 16"):
        model.resize_pos_embeddings(16, 32, 4)


def test_hidden_states_and_select_layer() -> None:
    model = make_vision()
    pixels = torch.randn(2, 3, 16, 16)
    outputs = model(pixels, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    assert torch.equal(outputs.hidden_states[0], model.embeddings(pixels))
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    for index in (-4, -3, -2, -1, 0, 1, 2, 3):
        selected = model(pixels, select_layer=index).last_hidden_state
        assert torch.equal(selected, outputs.hidden_states[index])
    with pytest.raises(ValueError, match="select_layer=-5: the vision model has 4 hidden states"):
        model(pixels, select_layer=-5)
    as_tuple = model(pixels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs.last_hidden_state)


def test_select_layer_runs_no_block_after_it() -> None:
    model = make_vision()
    calls: list[InternVisionEncoderLayer] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    model(torch.randn(1, 3, 16, 16), select_layer=-2)
    assert calls == list(model.encoder.layers[:2])


def test_sdpa_equals_eager() -> None:
    model = make_vision()
    pixels = torch.randn(2, 3, 16, 16)
    assert model.config._attn_implementation == "sdpa"
    sdpa = model(pixels).last_hidden_state
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(pixels).last_hidden_state, sdpa, rtol=1e-5, atol=1e-5)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="norm_type is 'batch_norm'"):
        InternVisionConfig(norm_type="batch_norm")
    with pytest.raises(ValueError, match="hidden_size=3200 is not a multiple"):
        InternVisionConfig(num_attention_heads=7)
    with pytest.raises(ValueError, match=r"drop_path_rate is 1\.0"):
        InternVisionConfig(drop_path_rate=1.0)
    model = make_vision()
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\), want"):
        model(torch.randn(3, 16, 16))
    with pytest.raises(ValueError, match="pixel_values or pixel_embeds"):
        model()
