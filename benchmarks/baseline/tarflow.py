"""TarFlow, both ways: a token is decoded by running the whole network on all tokens before it."""

import torch
from torch import Tensor, nn

from benchmarks.baseline.transformer import attention, layer_norm, linear, mlp
from nfm.nn.patches import patchify, unpatchify
from nfm.nn.transformer import Layer
from nfm.teacher.autoregressive import AutoregressiveBlock
from nfm.teacher.tarflow import TarFlow


def encode(model: TarFlow, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maps images to noise with the log-determinant; shapes as in `Bijection.encode`."""
    tokens, log_det = patchify(x, model.patch), torch.zeros(len(x), dtype=x.dtype)
    for number, block in enumerate(model.blocks):
        assert isinstance(block, AutoregressiveBlock)
        tokens = tokens.flip(1) if number % 2 else tokens
        a, b = parameters(block, tokens, label)
        tokens = (tokens - b) * torch.exp(-a)
        log_det = log_det - a.sum((1, 2))
        tokens = tokens.flip(1) if number % 2 else tokens
    return unpatchify(tokens, model.shape, model.patch), log_det


def decode(model: TarFlow, z: Tensor, label: Tensor | None) -> Tensor:
    """Maps noise to images, token by token, block by block from the last."""
    tokens = patchify(z, model.patch)
    for number, block in reversed(list(enumerate(model.blocks))):
        assert isinstance(block, AutoregressiveBlock)
        tokens = tokens.flip(1) if number % 2 else tokens
        known = tokens[:, :1]
        for i in range(1, tokens.shape[1]):
            # What is not known yet stands as zeros, which token i does not see.
            rest = torch.zeros_like(tokens[:, i:])
            a, b = parameters(block, torch.cat([known, rest], 1), label)
            known = torch.cat([known, tokens[:, i : i + 1] * torch.exp(a[:, i : i + 1]) + b[:, i : i + 1]], 1)
        tokens = known.flip(1) if number % 2 else known
    return unpatchify(tokens, model.shape, model.patch)


def parameters(block: AutoregressiveBlock, tokens: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns log-scale and shift of every token, both with shape (B, T, D) and zero for token 0."""
    h = linear(block.project, tokens[:, :-1]) + block.position
    if block.label is not None:
        table = block.label.table.weight
        h = h + (table[-1:] if label is None else table[label])[:, None]
    for layer in block.layers:
        assert isinstance(layer, Layer)
        h = h + attention(layer.attention, layer_norm(layer.norm, h))
        norm, inner = layer.mlp
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(inner, nn.Sequential)
        h = h + mlp(inner, layer_norm(norm, h))
    a, b = linear(block.head, layer_norm(block.norm, h)).chunk(2, -1)
    first = torch.zeros_like(tokens[:, :1])
    return torch.cat([first, a], 1), torch.cat([first, b], 1)
