"""Layers written out, on the weights of the library's own modules."""

import math

import torch
from torch import Tensor, nn

from nfm.nn.attention import Attention


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Evaluates x W^T + b on the last dimension."""
    return x @ layer.weight.T + layer.bias


def normalise(x: Tensor) -> Tensor:
    """Brings each token to mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalises each token, scales and shifts it."""
    return normalise(x) * layer.weight + layer.bias


def mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Evaluates two linear maps with the exact GELU, x Phi(x), between."""
    first, _, last = layers
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    h = linear(first, x)
    return linear(last, h * (1 + torch.erf(h / math.sqrt(2))) / 2)


def attention(layer: Attention, x: Tensor) -> Tensor:
    """Evaluates softmax(q k^T / sqrt(d)) v for each head; a causal one sees no token behind its own."""
    tokens, head_size = x.shape[1], x.shape[2] // layer.heads
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
    heads = []
    for q, k, v in zip(*(part.split(head_size, -1) for part in linear(layer.to_qkv, x).chunk(3, -1)), strict=True):
        scores = q @ k.transpose(1, 2) / math.sqrt(head_size)
        if layer.causal:
            scores = scores.masked_fill(hidden, -torch.inf)
        heads.append(torch.softmax(scores, -1) @ v)
    return linear(layer.out, torch.cat(heads, -1))
