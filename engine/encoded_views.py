"""Visual tokens of whole images, kept so that a tower which does not change makes them once.

Whoever asks about the same images again and again (reinforcement learning: every epoch, every
evaluation) gives the engine such a store. A tower that is being trained must have none.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch

from engine.processor import SeenImage, distinct_values


class EncodedViews:
    """Visual tokens by the pixels that they were made of; those used longest ago go first.

    They lie in the memory of the host, whatever the tower runs on.

    Args:
        limit_bytes: of all tokens together; those of an image that take more are not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tokens that are kept."""
        return self._bytes

    def tokens(self, seen: SeenImage, encode: Callable[[SeenImage], torch.Tensor]) -> torch.Tensor:
        """The visual tokens `(N, D)` of an image: those that are kept, or what `encode` makes.

        They must not be written to. What is kept comes from the memory of the host, wherever the
        tower runs.
        """
        key = _digest(seen)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        made = encode(seen)
        self._keep(key, made.cpu())
        return made

    def _keep(self, key: bytes, tokens: torch.Tensor) -> None:
        if tokens.nbytes > self._limit:
            return
        self._kept[key] = tokens
        self._bytes += tokens.nbytes
        while self._bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


def _digest(seen: SeenImage) -> bytes:
    """Of everything that the tower is given."""
    shape = f"{seen.grid_thw.tolist()} {seen.is_grey}"
    digest = hashlib.blake2b(shape.encode(), digest_size=32)
    digest.update(distinct_values(seen).cpu().contiguous().numpy().data)
    return digest.digest()
