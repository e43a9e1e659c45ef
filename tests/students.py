"""Students with weights drawn at random: an untrained one is 0 everywhere."""

from pathlib import Path

import torch

from nfm.build.student import make_student, save_student

ARGUMENTS = {"shape": [1, 8, 8], "patch": [1, 8], "depth": 1, "width": 16, "head_size": 8, "classes": 3}


def save_random_student(path: Path, *, seed: int = 0, one_step: bool = False, **arguments: object) -> Path:
    """Writes a student of 8x8 images of three classes, or as the arguments say; returns the path."""
    chosen = {**ARGUMENTS, **arguments}
    student, generator = make_student(chosen), torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    save_student(path, student, chosen, one_step)
    return path
