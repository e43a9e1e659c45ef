"""The optimizer, held against torch's."""

import pytest
import torch
from torch import nn

from nfm.train.adamw import AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_have_the_bits_of_torchs_fused_adamw(dtype):
    shapes, rates = [(3, 5), (5,), (2, 2, 2)], [0.1, 0.03, 0.01, 0.3]
    ours = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    theirs = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    mine = AdamW(ours, (0.9, 0.95), 1e-2)
    reference = torch.optim.AdamW(theirs, betas=(0.9, 0.95), weight_decay=1e-2, fused=True)
    generator = torch.Generator().manual_seed(0)
    for number, lr in enumerate(rates):
        reference.param_groups[0]["lr"] = lr
        for a, b in zip(ours, theirs, strict=True):
            # The last parameter has no gradient in the second update, and keeps value and state.
            idle = number == 1 and a is ours[-1]
            a.grad = None if idle else torch.randn(a.shape, generator=generator, dtype=dtype)
            b.grad = None if a.grad is None else a.grad.clone()
        mine.step(lr)
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        for kind, value in reference.state[b].items():
            assert torch.equal(mine.state[a][kind], value)
    mine.zero_grad()
    assert all(a.grad is None for a in ours)
