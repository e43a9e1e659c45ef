"""AdamW on a fixed list of parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """Adam with decoupled weight decay, by torch's fused kernel.

    The same bits as `torch.optim.AdamW(..., fused=True)`. That class imports torch's compiler when it is made, which
    takes longer than many a small training; its function does not.

    References:
        Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019). https://arxiv.org/abs/1711.05101

    Arguments:
        parameters: To be updated; those without a gradient are left alone.
        betas: Decay of the gradient's first and second moment.
        weight_decay: Decoupled weight decay.

    Attributes:
        param_groups: One group with the parameters, where a gradient scaler looks for them.
        state: Of each parameter that has been updated: the number of updates (step), and the gradient's first
            (exp_avg) and second moment (exp_avg_sq).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float], weight_decay: float) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._betas, self._weight_decay = betas, weight_decay

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Updates the parameters by their gradients at a learning rate."""
        updated = [parameter for parameter in self._parameters() if parameter.grad is not None]
        states = [self.state.get(parameter) or self._begin(parameter) for parameter in updated]
        adamw(
            list(updated),
            [parameter.grad for parameter in updated if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr,
            weight_decay=self._weight_decay,
            eps=1.0e-8,
            maximize=False,
        )

    def _parameters(self) -> list[nn.Parameter]:
        return self.param_groups[0]["params"]

    def _begin(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        return self.state[parameter]
