"""Random generators as a function of a seed and counters, and nothing else."""

import hashlib

import torch


def generator_for(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator fixed by a seed and any counters, such as a step or an image's index.

    The integers are hashed, so that neighbouring counters give unrelated streams.
    """
    text = ",".join(str(int(number)) for number in (seed, *counters))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device).manual_seed(number)
