"""The learning rate: a pure function of the step, so that resuming needs no state and all ranks agree."""

import math

from upfield.distributed.configuration import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Compute the learning rate of a step.

    Args:
        config: learning rate, warm-up and schedule.
        step: number of weight updates before this step.
        total_steps: number of steps in the whole run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(total_steps - config.warmup_steps - 1, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
