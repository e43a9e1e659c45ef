"""The states of the global random streams, without pickle.

The library draws from generators that are functions of seed and update. A loss or a layer of somebody else's may draw
from the global streams; kept in the checkpoint, they go on as if the training had not been killed.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def stream_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the streams of Python, NumPy, PyTorch and, where CUDA is at work, its devices.

    Returns:
        Tensors by name, and what of the states JSON holds.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words),
        "numpy": torch.from_numpy(np.asarray(keys, np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        tensors |= {f"cuda/{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": [version, gauss], "numpy": [name, position, has_gauss, cached]}


def restore_streams(tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Sets the streams to states that `stream_states` has read; devices that are no more are passed over."""
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for number in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if (state := tensors.get(f"cuda/{number}")) is not None:
            torch.cuda.set_rng_state(state, number)
