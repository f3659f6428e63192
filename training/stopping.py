"""Why a training run stops before its last step."""

from __future__ import annotations


class DivergedError(RuntimeError):
    """The loss is no number, or has grown; the message is one sentence that says what is kept."""
