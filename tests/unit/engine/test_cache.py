"""Forks share, expansions repeat, merges pad."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from engine.cache import cache_bytes, expand, fork, join, merge, select


def filled(batch: int = 2, columns: int = 5, layers: int = 3) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(torch.randn(batch, 2, columns, 4), torch.randn(batch, 2, columns, 4), layer)
    return cache


def grow(cache: DynamicCache, columns: int = 1) -> None:
    batch = cache.layers[0].keys.shape[0]
    for layer in range(len(cache.layers)):
        cache.update(torch.randn(batch, 2, columns, 4), torch.randn(batch, 2, columns, 4), layer)


def test_a_fork_shares_its_parents_tensors() -> None:
    cache = filled()
    twin = fork(cache)

    for mine, theirs in zip(twin.layers, cache.layers, strict=True):
        assert mine.keys.data_ptr() == theirs.keys.data_ptr()
        assert mine.values.data_ptr() == theirs.values.data_ptr()


def test_a_fork_and_its_parent_grow_apart() -> None:
    cache = filled()
    before = cache.layers[0].keys.clone()
    twin = fork(cache)
    grow(twin, 2)
    grow(cache)

    assert (twin.get_seq_length(), cache.get_seq_length()) == (7, 6)
    assert torch.equal(cache.layers[0].keys[:, :, :5], before)
    assert torch.equal(twin.layers[0].keys[:, :, :5], before)
    assert not torch.equal(twin.layers[0].keys[:, :, 5], cache.layers[0].keys[:, :, 5])


@pytest.mark.parametrize("drop", [0, 2, 5])
def test_a_fork_can_leave_off_the_end(drop: int) -> None:
    cache = filled()
    twin = fork(cache, drop)

    assert torch.equal(twin.layers[1].values, cache.layers[1].values[:, :, : 5 - drop])
    assert cache.get_seq_length() == 5


def test_one_branch_of_a_fork_shares_its_tensors_too() -> None:
    cache = filled(batch=3)
    twin = fork(cache, 2, row=1)

    for mine, theirs in zip(twin.layers, cache.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys[1:2, :, :3])
        assert mine.keys.data_ptr() == theirs.keys[1].data_ptr()
        assert mine.values.data_ptr() == theirs.values[1].data_ptr()


@pytest.mark.parametrize("drop", [-1, 6])
def test_a_fork_cannot_leave_off_what_is_not_there(drop: int) -> None:
    with pytest.raises(ValueError, match="Cannot drop"):
        fork(filled(), drop)


def test_an_expansion_repeats_every_branch() -> None:
    cache = filled()
    group = expand(cache, 3)

    assert torch.equal(group.layers[2].keys, cache.layers[2].keys.repeat_interleave(3, 0))
    assert cache.layers[2].keys.shape[0] == 2


def test_a_selection_takes_branches_in_order() -> None:
    cache = filled(batch=4)
    chosen = select(cache, [3, 1])

    assert torch.equal(chosen.layers[0].keys, cache.layers[0].keys[[3, 1]])


def test_a_merge_pads_the_branches_that_did_not_grow() -> None:
    cache = filled(batch=3)
    part = select(cache, [1])
    grow(part, 2)
    merged = merge(cache, part, [1])

    assert merged.get_seq_length() == 7
    assert torch.equal(merged.layers[0].keys[1], part.layers[0].keys[0])
    assert torch.equal(merged.layers[0].keys[0, :, :5], cache.layers[0].keys[0])
    assert merged.layers[0].keys[[0, 2], :, 5:].abs().sum() == 0


def test_caches_of_any_length_join_as_one_batch() -> None:
    caches = [filled(batch=2), filled(batch=1, columns=7), filled(batch=1, columns=3)]
    joined = join(caches)

    assert joined.get_seq_length() == 7
    for layer, *parts in zip(joined.layers, *(cache.layers for cache in caches), strict=True):
        for whole, own in (
            (layer.keys, [p.keys for p in parts]),
            (layer.values, [p.values for p in parts]),
        ):
            assert whole.shape == (4, 2, 7, 4)
            assert torch.equal(whole[:2, :, :5], own[0])
            assert torch.equal(whole[2:3], own[1])
            assert torch.equal(whole[3:, :, :3], own[2])
            assert not whole[:2, :, 5:].any()
            assert not whole[3:, :, 3:].any()


def test_bytes_are_those_of_keys_and_values() -> None:
    assert cache_bytes(filled(batch=2, columns=5, layers=3)) == 2 * 3 * (2 * 2 * 5 * 4) * 4


def test_an_empty_cache_cannot_be_counted_layer_by_layer() -> None:
    assert cache_bytes(DynamicCache()) == 0
