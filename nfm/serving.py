"""A student as MLflow serves it: weights from safetensors, tensors as arrays.

MLflow runs this file, under a name of its own, when it loads a student that a stage has logged.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(weights: Path) -> torch.nn.Module:
    """Reads a student onto the CPU, or onto the GPU if there is one."""
    from nfm.build.student import load_student

    return load_student(weights, torch.device("cuda" if torch.cuda.is_available() else "cpu")).model


@torch.no_grad()
def predict(student: torch.nn.Module, inputs: dict[str, Any]) -> np.ndarray:
    """Evaluates the student's velocity.

    Arguments:
        student: From `load`.
        inputs: Arrays x of shape (B, C, H, W) on the scale [-1, 1], t of shape (B,) in [0, 1], and,
            for a conditional student, label of shape (B,).

    Returns:
        The velocity, float32 of shape (B, C, H, W).
    """
    device = next(student.parameters()).device
    x, t = (torch.as_tensor(np.asarray(inputs[key]), device=device) for key in ("x", "t"))
    label = inputs.get("label")
    if label is not None:
        label = torch.as_tensor(np.asarray(label), device=device)
    return student(x.float(), t.float(), label).cpu().numpy()


if __name__ != "nfm.serving":  # a plain import must work without mlflow
    import sys

    from nfm.tracking import set_python_model

    set_python_model(sys.modules[__name__])
