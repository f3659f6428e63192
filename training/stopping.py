"""Why a training run stops before its last step."""

from __future__ import annotations


class DivergedError(RuntimeError):
    """The run cannot go on as it is: a loss, logits or weights that are no numbers, or too far off.

    The step loop adds what is kept, and makes one sentence of it.

    Attributes:
        reason: what has happened, and at which step.
        remedy: what to change before the run goes on; empty: the learning rate.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
