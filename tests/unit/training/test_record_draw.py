"""Which phantoms and records a step is given."""

import numpy as np
import pytest

from tests.unit.training.conftest import picture
from training.embedded import train_tokenizer
from training.language import MixConfig
from training.materials import Materials
from training.questions import case_for
from training.record_draw import RecordDraw
from training.world import Case


def test_letters_are_asked_more_often_the_more_options_there_are(tokenizer) -> None:
    """One less than the options, squared: one, four and nine of fourteen."""
    cases = []
    for seed, (family, answer, options) in enumerate(
        [
            ("nodule_side", "left", 2),
            ("effusion_grade", "small", 3),
            ("nodule_zone", "left upper zone", 4),
        ]
    ):
        ordered = case_for(family, answer, 7)
        assert len(ordered.question.options) == options
        cases.append(Case(ordered.truth(), picture(seed, 84, 56), {}, ordered.question))
    mix = MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, letters=400)
    draw = RecordDraw(Materials(cases, [], [], []), mix, tokenizer, None, 1, 0)

    records = draw.records(2, np.random.default_rng(0))[2:]

    assert len(records) == 400
    for case, share in zip(cases, (1 / 14, 4 / 14, 9 / 14), strict=True):
        own = sum(record.pictures[0] is case.view for record in records)
        assert own / len(records) == pytest.approx(share, abs=0.06)


def test_a_vocabulary_without_words_has_none_to_draw() -> None:
    mix = MixConfig(zoom=0.0, probe=0.0, auto=0.0, real=0.0, letters=1, words=0.5)
    wordless = train_tokenizer(["0 1 2"], vocabulary=300)
    with pytest.raises(ValueError, match=r"mix\.words needs a tokenizer of at least 4 whole words"):
        RecordDraw(Materials([], [], [], []), mix, wordless, None, 1, 0)
