"""Processes that each hold the whole policy and roll out their own share of every batch.

Groups are rolled out where they fall: the prompt with place p of a batch belongs to process
p modulo the count. What is drawn for it comes from its place, and losses are divided by counts
of the whole mini-batch, so that any number of processes computes what one would. Only plain
numbers and gradients are exchanged; trajectories stay where they were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed
from torch import nn

from training.accelerated import Accelerated
from training.config import ConfigError
from training.processes import Unwrapped


class Replicas(Unwrapped, Accelerated):
    """The processes of a reinforcement run; without a launcher, this one alone.

    The policy is called as it is, by the engine as by the update: nothing wraps it, and the
    gradients of a step are added up once, before they are clipped.

    Raises:
        ConfigError: the launcher spreads the weights of a model over processes.
    """

    def __init__(self) -> None:
        super().__init__()
        if self.is_sharded:
            raise ConfigError(
                "Every process rolls out the policy, and needs all of its weights: launch this "
                "stage with ddp.yaml, not with FSDP or DeepSpeed."
            )

    def clipped(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Adds the gradients of all processes up, and scales them; returns their norm.

        What no process has a gradient of is left without one, as in one process.
        """
        listed = list(parameters)
        if self.count > 1:
            self._add_up(listed)
        return float(torch.nn.utils.clip_grad_norm_(listed, most))

    def _add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        has = torch.tensor([p.grad is not None for p in parameters], device=self.device).int()
        torch.distributed.all_reduce(has)
        for parameter, count in zip(parameters, has.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
