"""Patches, attention, embeddings and transformer layers."""

import pytest
import torch

from nfm.nn.attention import Attention, attend
from nfm.nn.embed import LabelEmbedding, TimeEmbedding, drop
from nfm.nn.patches import patchify, token_shape, unpatchify
from nfm.nn.transformer import MLP, Layer, ModulatedLayer

PATCHES = {
    "rows": ((1, 8, 8), (1, 8)),
    "squares": ((3, 4, 6), (2, 2)),
    "oblong": ((2, 6, 4), (3, 1)),
    "pixels": ((1, 2, 3), (1, 1)),
}


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # A few hundred float64 operations on numbers near one.
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shape", "patch"), PATCHES.values(), ids=PATCHES.keys())
def test_unpatchify_undoes_patchify(shape, patch):
    x = random(2, *shape)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, *token_shape(shape, patch))
    assert torch.equal(unpatchify(tokens, shape, patch), x)


@pytest.mark.parametrize(("shape", "patch"), PATCHES.values(), ids=PATCHES.keys())
def test_a_token_holds_the_pixels_of_its_patch(shape, patch):
    x, (_, _, w), (p, q) = random(1, *shape), shape, patch
    for k, token in enumerate(patchify(x, patch)[0]):
        top, left = k // (w // q) * p, k % (w // q) * q
        pixels = x[0, :, top : top + p, left : left + q]
        assert torch.equal(token.sort().values, pixels.flatten().sort().values)


def test_a_row_token_is_a_row_of_pixels():
    x = random(1, 1, 8, 8)
    assert torch.equal(patchify(x, (1, 8))[0], x[0, 0])


def test_a_patch_that_does_not_divide_the_image_is_named():
    with pytest.raises(ValueError, match=r"patch is \(3, 2\), expected divisors of .* 8x8"):
        patchify(random(1, 1, 8, 8), (3, 2))


def test_a_head_size_that_does_not_divide_the_width_is_named():
    with pytest.raises(ValueError, match="head_size is 5, expected a divisor of width = 12"):
        Attention(12, 5, causal=True)


def test_causal_attention_looks_back_and_never_ahead():
    attention = Attention(12, 4, causal=True).double()
    jacobian = torch.autograd.functional.jacobian(attention, random(1, 5, 12))
    reach = jacobian[0, :, :, 0].abs().amax((1, 3))
    assert torch.equal(reach > 0, torch.ones(5, 5).tril().bool())


def test_full_attention_does_not_know_the_order_of_tokens():
    attention, x = Attention(12, 4, causal=False).double(), random(2, 5, 12)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(attention(x[:, order]), attention(x)[:, order])


@pytest.mark.parametrize("causal", [True, False])
def test_without_queries_attention_is_the_mean_of_what_it_sees(causal):
    attention, x = Attention(8, 4, causal).double(), random(1, 4, 8)
    with torch.no_grad():
        attention.to_qkv.weight[:8] = 0  # the queries
        attention.to_qkv.bias[:8] = 0
        values = x @ attention.to_qkv.weight[16:].T + attention.to_qkv.bias[16:]
        seen = torch.ones(4, 4).tril().double() if causal else torch.ones(4, 4).double()
        expected = attention.out(seen / seen.sum(1, keepdim=True) @ values)
        close(attention(x), expected)


def test_heads_do_not_see_each_other():
    attention = Attention(8, 4, causal=False).double()
    torch.nn.init.eye_(attention.out.weight)
    x = random(1, 3, 8)
    before = attention(x)
    with torch.no_grad():
        for part in attention.to_qkv.weight.split(8):
            part[4:] += 1.0  # query, key and value of the second head
    after = attention(x)
    close(after[..., :4], before[..., :4])
    assert not torch.allclose(after[..., 4:], before[..., 4:])


@pytest.mark.parametrize("parts", [[1] * 6, [6], [2, 1, 3]], ids=str)
def test_a_layer_part_by_part_equals_the_layer_at_once(parts):
    layer, x = Layer(12, 4, causal=True).double(), random(3, 6, 12)
    cache, outputs = layer.attention.room(3, 6, x), []
    for tokens in x.split(parts, 1):
        y, cache = layer.extend(tokens, cache)
        outputs.append(y)
    close(torch.cat(outputs, 1), layer(x))
    assert cache.seen == 6


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 4, 6])
def test_attention_in_bfloat16_is_attention_to_its_digits(causal, n):
    q, k, v = random(2, 3, n, 8), random(2, 3, 6, 8), random(2, 3, 6, 8)
    rounded = [part.bfloat16() for part in (q, k, v)]
    exact = attend(*(part.double() for part in rounded), causal)
    assert (attend(*rounded, causal) - exact).abs().max() < 0.04 * exact.abs().max()  # a handful of roundings at 2^-8


def test_a_modulated_layer_without_modulation_is_the_identity():
    layer, x = ModulatedLayer(12, 4).double(), random(2, 5, 12)
    assert torch.equal(layer(x, [torch.zeros(2, 1, 12).double()] * 6), x)


def test_a_modulated_layer_with_open_gates_is_the_plain_layer():
    plain, modulated = Layer(12, 4, causal=False).double(), ModulatedLayer(12, 4).double()
    modulated.attention.load_state_dict(plain.attention.state_dict())
    modulated.mlp.load_state_dict(plain.mlp[1].state_dict())
    zero, one = torch.zeros(2, 1, 12).double(), torch.ones(2, 1, 12).double()
    x = random(2, 5, 12)
    close(modulated(x, [zero, zero, one, zero, zero, one]), plain(x))


def test_modulation_shifts_and_scales_as_the_affine_part_of_a_norm():
    plain, modulated = Layer(12, 4, causal=False).double(), ModulatedLayer(12, 4).double()
    modulated.attention.load_state_dict(plain.attention.state_dict())
    modulated.mlp.load_state_dict(plain.mlp[1].state_dict())
    shifts, scales = random(2, 12), random(2, 12)
    with torch.no_grad():
        for norm, shift, scale in zip((plain.norm, plain.mlp[0]), shifts, scales, strict=True):
            norm.bias.copy_(shift)
            norm.weight.copy_(1 + scale)
    parts = [
        part.expand(2, 1, 12)
        for shift, scale in zip(shifts, scales, strict=True)
        for part in (shift, scale, torch.ones(12).double())
    ]
    x = random(2, 5, 12)
    close(modulated(x, parts), plain(x))


def test_a_dropped_label_is_no_label():
    embed, label = LabelEmbedding(3, 4), torch.tensor([0, 1, 2, 1])
    none = embed(4, None, None)
    assert torch.equal(embed(4, label, torch.ones(4).bool()), none)
    dropped = torch.tensor([False, True, False, True])
    mixed = embed(4, label, dropped)
    assert torch.equal(mixed[dropped], none[dropped])
    assert torch.equal(mixed[~dropped], embed(4, label, None)[~dropped])
    assert len(torch.cat([embed(4, label, None), none]).unique(dim=0)) == 4


def test_no_label_is_learned_with_and_without_a_mask():
    for label, dropped in ((None, None), (torch.tensor([0]), torch.tensor([True]))):
        embed = LabelEmbedding(3, 4)
        embed(1, label, dropped).sum().backward()
        assert torch.equal(embed.table.weight.grad.sum(1) != 0, torch.arange(4) == 3)


def test_a_label_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"label has shape \(2,\), expected \(3,\)"):
        LabelEmbedding(3, 4)(3, torch.tensor([0, 1]), None)


def test_labels_are_dropped_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(40_000, dtype=torch.long)
    share = drop(label, 0.1, generator).double().mean().item()
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / 40_000) ** 0.5
    assert drop(label, 0.0, generator) is None
    assert drop(None, 0.1, generator) is None


def test_neighbouring_times_are_told_apart_over_the_whole_interval():
    torch.manual_seed(0)
    embed = TimeEmbedding(16).double()
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    distance = torch.cdist(embed(t), embed(t)) + torch.eye(1001) * 1e9
    # No time looks like another, be it near or far: steps of 1e-3 stay well above rounding.
    assert distance.min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_without_a_gradient_has_the_bits_of_one_with_and_leaves_its_input(dtype):
    mlp, x = MLP(64).requires_grad_(False), random(2, 5, 64).float()
    kept = x.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = mlp(x)
        with torch.no_grad():
            assert torch.equal(mlp(x), expected)
        with torch.inference_mode():
            assert torch.equal(mlp(x), expected)
    assert expected.dtype == dtype
    assert torch.equal(x, kept)
