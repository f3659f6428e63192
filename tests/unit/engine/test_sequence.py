"""What a branch was fed: columns, positions, prefixes."""

import torch

from engine.sequence import FedSequence

IMAGE, SLOT = 9, 7


def fed() -> FedSequence:
    sequence = FedSequence(prompt=4)
    positions = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]])
    sequence.extend((5, IMAGE, IMAGE, 6), positions, [(1, torch.ones(2, 3))])
    sequence.write(11, -0.5, 0.25, forced=False)
    sequence.feed(11, 3)
    sequence.feed_latent(SLOT, 4, torch.zeros(3))
    sequence.write(12, -1.0, 0.5, forced=True)
    sequence.feed(12, 5)
    sequence.extend((IMAGE,), torch.full((3, 1), 6), [(0, torch.full((1, 3), 2.0))])
    sequence.write(13, -2.0, 1.0, forced=False)
    return sequence


def test_everything_stands_at_its_column() -> None:
    sequence = fed()
    assert sequence.ids == [5, IMAGE, IMAGE, 6, 11, SLOT, 12, IMAGE]
    assert sequence.position_ids[0].tolist() == [0, 1, 1, 2, 3, 4, 5, 6]
    assert sequence.position_ids[2].tolist() == [0, 1, 2, 2, 3, 4, 5, 6]
    assert [column for column, _ in sequence.images] == [1, 7]
    assert [column for column, _ in sequence.latents] == [5]
    assert [(t.predictor, t.token_id, t.forced) for t in sequence.written] == [
        (3, 11, False),
        (5, 12, True),
        (7, 13, False),
    ]


def test_a_prefix_holds_what_was_fed_and_written_in_it_and_is_a_copy() -> None:
    sequence = fed()
    prefix = sequence.prefix(6)
    assert prefix.ids == [5, IMAGE, IMAGE, 6, 11, SLOT]
    assert prefix.position_ids.shape == (3, 6)
    assert len(prefix.images) == len(prefix.latents) == 1
    # The token that column 5 predicts comes after the prefix.
    assert [t.token_id for t in prefix.written] == [11]
    prefix.feed(99, 5)
    assert sequence.ids == fed().ids
    assert sequence.prefix(2).position_ids.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert sequence.prefix(0).position_ids.shape == (3, 0)
    assert fed().prefix(8).ids == sequence.ids
