"""The learning rate as a function of the update, so that resuming needs no state for it."""

import math


def learning_rate(step: int, *, steps: int, lr: float, warmup: int, final_lr: float) -> float:
    r"""Returns the learning rate of an update: a linear warm-up, then a cosine.

    With n the update counted from 1, W the warm-up, S the steps and r the final share:

    .. math:: n / W \quad (n \le W), \qquad
        r + (1 - r)\, \tfrac12 \left(1 + \cos \pi \tfrac{n - W}{S - W}\right) \quad (n > W)

    times the highest rate.

    Arguments:
        step: Number of the update, from 0.
        steps: Updates in all.
        lr: The highest rate, that of the last update of the warm-up.
        warmup: Updates until it is reached.
        final_lr: Share of `lr` at the last update.
    """
    number = step + 1
    if number <= warmup:
        return lr * number / warmup
    turn = math.pi * (number - warmup) / (steps - warmup)
    return lr * (final_lr + (1 - final_lr) * (1 + math.cos(turn)) / 2)
