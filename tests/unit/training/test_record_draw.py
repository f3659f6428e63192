"""Which phantoms and records a step is given."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.training.conftest import picture
from training.embedded import train_tokenizer
from training.language import MixConfig
from training.latents import LatentConfig
from training.materials import Materials
from training.questions import ALL_FAMILIES, case_for
from training.record_draw import RecordDraw
from training.records import RecordWriter
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


def test_mixes_of_other_forms_draw_the_same_questions(
    tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an ablation differ in the segments that they write, and in nothing else."""
    cases = []
    for seed, family in enumerate(("nodule_side", "effusion_grade", "nodule_zone", "heart_size")):
        ordered = case_for(family, ALL_FAMILIES[family].answers[0], seed)
        cases.append(Case(ordered.truth(), picture(seed, 84, 56), {}, ordered.question))
    asked: list[tuple[str, tuple[str, ...], int]] = []
    write = RecordWriter.write

    def noted(self, question, form, view, *rest, **more):
        asked.append((question.text, question.options, id(view)))
        return write(self, question, form, view, *rest, **more)

    monkeypatch.setattr(RecordWriter, "write", noted)
    plain = MixConfig(zoom=0.0, probe=0.4, auto=0.3, real=0.0, letters=2)
    drawn = []
    for mix, latents in (
        (plain, None),
        (replace(plain, latent=0.8, probe=0.1), LatentConfig()),
        (replace(plain, latent=1.0), LatentConfig(steps=3)),
    ):
        asked.clear()
        draw = RecordDraw(Materials(cases, [], [], []), mix, tokenizer, latents, 1, 0)
        rng = np.random.default_rng(5)
        assert len(draw.records(40, rng)) == 42
        drawn.append([*asked, rng.integers(2**62)])

    assert len(set(drawn[0])) > 20
    assert drawn[1] == drawn[0]
    assert drawn[2] == drawn[0]
