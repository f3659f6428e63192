"""The key-value cache of a batch of branches: fork, expand, select, join, merge, bytes.

A `DynamicCache` never writes into a tensor it holds (every update concatenates into a new
one), so a fork shares the tensors of its parent by reference and costs no copy; parent and
fork grow apart from then on. Rotary embedding is applied before a key is cached, so columns may
be padded anywhere as long as a mask keeps them from being attended to.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def fork(cache: DynamicCache, drop: int = 0, row: int | None = None) -> DynamicCache:
    """A second cache over the same tensors, without the last `drop` columns; nothing is copied.

    Args:
        cache: of a batch of branches.
        drop: how many columns the fork does not have.
        row: the only branch that the fork has; None: all.

    Raises:
        ValueError: when `drop` is negative or reaches beyond the cache.
    """
    length = cache.get_seq_length()
    if not 0 <= drop <= length:
        raise ValueError(f"Cannot drop {drop} columns of a cache of {length}.")
    rows = slice(None) if row is None else slice(row, row + 1)
    return _cache_of(
        [
            (keys[rows, :, : length - drop], values[rows, :, : length - drop])
            for keys, values in map(_tensors, cache.layers)
        ]
    )


def expand(cache: DynamicCache, count: int) -> DynamicCache:
    """A fork whose every branch is there `count` times in a row; one copy of the tensors."""
    group = fork(cache)
    group.batch_repeat_interleave(count)
    return group


def select(cache: DynamicCache, rows: list[int]) -> DynamicCache:
    """A fork with only the given branches, in the given order."""
    chosen = fork(cache)
    device = _tensors(cache.layers[0])[0].device
    chosen.batch_select_indices(torch.tensor(rows, device=device))
    return chosen


def join(caches: list[DynamicCache]) -> DynamicCache:
    """The branches of several caches as one batch, in order; one copy of the tensors.

    Branches that are shorter than the longest get columns of zeros at their end, to be masked by
    the caller.
    """
    most = max(cache.get_seq_length() for cache in caches)
    joined = []
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        pairs = [_tensors(layer) for layer in layers]
        joined.append(
            (_stacked([p[0] for p in pairs], most), _stacked([p[1] for p in pairs], most))
        )
    return _cache_of(joined)


def _stacked(parts: list[torch.Tensor], columns: int) -> torch.Tensor:
    """`(b, H, T, D)` of different T, one behind the other."""
    first = parts[0]
    count = sum(part.shape[0] for part in parts)
    stacked = first.new_empty(count, first.shape[1], columns, first.shape[3])
    row = 0
    for part in parts:
        own = stacked[row : row + part.shape[0]]
        own[:, :, : part.shape[2]] = part
        own[:, :, part.shape[2] :] = 0
        row += part.shape[0]
    return stacked


def merge(whole: DynamicCache, part: DynamicCache, rows: list[int]) -> DynamicCache:
    """`whole`, lengthened by the columns that `part` has grown in the given branches.

    Branches that are not in `rows` get columns of zeros there, to be masked by the caller.
    """
    merged = []
    for old, new in zip(whole.layers, part.layers, strict=True):
        pair = []
        for base, grown in zip(_tensors(old), _tensors(new), strict=True):
            added = base.new_zeros(
                base.shape[0], base.shape[1], grown.shape[2] - base.shape[2], base.shape[3]
            )
            added[rows] = grown[:, :, base.shape[2] :]
            pair.append(torch.cat([base, added], dim=2))
        merged.append((pair[0], pair[1]))
    return _cache_of(merged)


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values that the cache can see."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in _tensors(layer)
    )


def _cache_of(tensors: list[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for keys, values in tensors:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)
        # Set by reference: `update` would concatenate, which copies.
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _tensors(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    keys = getattr(layer, "keys", None)
    values = getattr(layer, "values", None)
    if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor):
        raise ValueError("The cache is empty: run the prompt first.")
    return keys, values
