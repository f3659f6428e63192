"""M-RoPE position ids, always explicit (performance notes, section 0).

Qwen2.5-VL gives every position three ids (time, height, width). Text repeats one number in
all three; an image that starts at `s` has time `s`, height `s + row`, width `s + column` over
its merged grid, and what follows goes on at `s + max(rows, columns)`.
"""

from __future__ import annotations

import torch

from engine.geometry import PatchGrid


class PositionCursor:
    """Hands out the position ids of one sequence, segment by segment."""

    def __init__(self, start: int = 0) -> None:
        self.next = start

    def text(self, count: int) -> torch.Tensor:
        """Ids of `count` text or latent tokens: int64 `(3, count)`."""
        ids = torch.arange(self.next, self.next + count).expand(3, -1)
        self.next += count
        return ids

    def image(self, grid: PatchGrid) -> torch.Tensor:
        """Ids of the visual tokens of one image, raster order: int64 `(3, rows * columns)`."""
        rows = torch.arange(grid.rows).repeat_interleave(grid.columns)
        columns = torch.arange(grid.columns).repeat(grid.rows)
        ids = torch.stack([torch.zeros_like(rows), rows, columns]) + self.next
        self.next += max(grid.rows, grid.columns)
        return ids

    def sequence(
        self, token_ids: list[int], image_token_id: int, grids: list[PatchGrid]
    ) -> torch.Tensor:
        """Ids of a token list whose images are expanded runs of `image_token_id`: `(3, T)`.

        Raises:
            ValueError: when the runs do not match the grids.
        """
        parts: list[torch.Tensor] = []
        index, waiting = 0, list(grids)
        while index < len(token_ids):
            if token_ids[index] == image_token_id:
                if not waiting:
                    raise ValueError("There are more image tokens than grids.")
                grid = waiting.pop(0)
                run = token_ids[index : index + grid.cells]
                if run != [image_token_id] * grid.cells:
                    raise ValueError(f"An image of {grid.cells} tokens has only part of them.")
                parts.append(self.image(grid))
                index += grid.cells
            else:
                end = index
                while end < len(token_ids) and token_ids[end] != image_token_id:
                    end += 1
                parts.append(self.text(end - index))
                index = end
        if waiting:
            raise ValueError("There are more grids than images in the tokens.")
        return torch.cat(parts, dim=1) if parts else torch.empty(3, 0, dtype=torch.int64)
