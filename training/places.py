"""What the language model's loss asks beside words: corners, attention, near coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from training.corners import KeptCorners
from training.numbers import NumberScale


@dataclass(frozen=True, slots=True)
class PlaceTerms:
    """What the language model is asked of places beside the words.

    Attributes:
        corners: readings that have to stay possible (`training.corners`); None: not asked.
        corner_weight: of their errors.
        grounding: weight of the attention that is to lie on a box while its coordinates are
            written (`training.grounding`); 0: not asked. The model's attention has to be
            `engine.attention.register_row_attention`'s.
        pointing: weight of the attention by which letters, and the names of what boxes are of, are
            found (`training.letter_heads`); 0: not asked. The same holds for the model's attention.
        numbers: spreads the targets of coordinates; None: only the true ones are right.
        distance: weight of how far the expected coordinates lie from the true ones, in sides of
            their box; needs `numbers`, 0: not asked.
    """

    corners: KeptCorners | None = None
    corner_weight: float = 0.0
    grounding: float = 0.0
    pointing: float = 0.0
    numbers: NumberScale | None = None
    distance: float = 0.0

    def added(
        self,
        loss: torch.Tensor,
        numbers: dict[str, float],
        corners: torch.Tensor,
        grounding: torch.Tensor,
        pointing: torch.Tensor,
        distance: torch.Tensor,
    ) -> torch.Tensor:
        """The loss with the weighted terms, which are written into the numbers.

        Args:
            loss: of the words and latents.
            numbers: to log; changed in place.
            corners: mean error in sides of a box.
            grounding: mean of minus the logarithm of the attention on boxes.
            pointing: mean over records of minus the logarithms of what tokens see of what they
                point at.
            distance: mean of how far coordinates are off, in sides of their box.
        """
        for name, term, weight in (
            ("corners", corners, self.corner_weight if self.corners is not None else 0.0),
            ("grounding", grounding, self.grounding),
            ("pointing", pointing, self.pointing),
            ("distance", distance, self.distance),
        ):
            if weight:
                numbers[name] = float(term.detach())
                loss = loss + weight * term
        return loss


NO_PLACES: Final = PlaceTerms()
