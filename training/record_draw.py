"""Which records a step trains on: phantoms and real radiographs by the shares of a mix."""

from __future__ import annotations

from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.cold_start import aside, blind_record, check_blind
from training.drawn_words import DRAWN_OPTIONS
from training.features import FeatureBank
from training.language import (
    Asked,
    MixConfig,
    asked_for_letters,
    asked_of_real,
    drawn_record,
    letter_record,
    phantom_record,
    real_cases,
)
from training.latents import LatentConfig
from training.materials import Materials
from training.records import Record, RecordWriter
from training.world import Case

# Of a question about a phantom.
MOST_OPTIONS: Final = 4


class RecordDraw:
    """Draws the records of steps.

    Args:
        materials: what is drawn from.
        mix: shares of the record forms.
        tokenizer: of the model.
        latents: how latent segments are trained; None: there are none.
        real_variants: shifted views of each real radiograph.
        seed: of these shifts.

    Raises:
        ValueError: zooms are to be taught blindly, and the mix tells where to look; or options are
            to be drawn from a vocabulary without words.
    """

    def __init__(
        self,
        materials: Materials,
        mix: MixConfig,
        tokenizer: PreTrainedTokenizerBase,
        latents: LatentConfig | None,
        real_variants: int,
        seed: int,
    ) -> None:
        self._cases, self._own = materials.train, materials.own_train
        self._aside = mix.calls != "learned" or any(case.blind for case in self._cases)
        if self._aside:
            check_blind(mix)
        self._mix, self._latents = mix, latents
        self._real = real_cases(materials.real_train, real_variants, seed)
        self._writer = RecordWriter(tokenizer, calls=mix.calls)
        if mix.words and len(self._writer.words) < DRAWN_OPTIONS:
            raise ValueError(
                f"mix.words needs a tokenizer of at least {DRAWN_OPTIONS} whole words: set it to 0."
            )

    def register(self, bank: FeatureBank, view_variants: int) -> None:
        """Makes every picture that a record can hold known to a bank."""
        bank.add([case.view for case in self._cases], variants=view_variants)
        crops = [p for case in self._cases for variants in case.crops.values() for p in variants]
        bank.add(crops, variants=1)
        bank.add([asked.view for asked in self._own], variants=view_variants)
        bank.add([p for a in self._own for some in a.crops.values() for p in some], variants=1)
        for view, _, parts in self._real:
            bank.add([view, *(p for variants in parts.values() for p in variants)], variants=1)

    def records(self, count: int, rng: np.random.Generator) -> list[Record]:
        """The records of a step: `count`, and behind them those that ask for letters alone.

        Each is drawn by a generator of its own, image and question first: mixes that differ in
        the forms alone, as those of an ablation's rows, draw the same questions.
        """
        seeds = rng.integers(2**62, size=count + self._mix.letters)
        own = [np.random.default_rng(seed) for seed in seeds]
        return [
            *(self._record(generator) for generator in own[:count]),
            *(
                letter_record(
                    self._asked_for_letters(generator), self._mix, self._writer, generator
                )
                for generator in own[count:]
            ),
        ]

    def _record(self, rng: np.random.Generator) -> Record:
        if self._own and rng.random() < self._mix.own:
            asked = self._own[int(rng.integers(len(self._own)))]
            return drawn_record(asked, self._mix, self._writer, rng, self._latents)
        if self._real and rng.random() < self._mix.real:
            asked = asked_of_real(self._real[int(rng.integers(len(self._real)))], rng)
            return drawn_record(asked, self._mix, self._writer, rng, self._latents)
        return self._phantom_record(self._cases[int(rng.integers(len(self._cases)))], rng)

    def _asked_for_letters(self, rng: np.random.Generator) -> Asked:
        case = self._case_for_letter(rng)
        asked = asked_for_letters(case, rng)
        return aside(asked, case, rng) if self._aside else asked

    def _case_for_letter(self, rng: np.random.Generator) -> Case:
        """A phantom for a letter: the more options its question has, the likelier.

        One of two was learned after some hundred records of a family, one of four not after a
        thousand.
        """
        while True:
            case = self._cases[int(rng.integers(len(self._cases)))]
            options = len(case.asked.options) if case.asked else 0
            if rng.random() < (max(options, 2) - 1) ** 2 / (MOST_OPTIONS - 1) ** 2:
                return case

    def _phantom_record(self, case: Case, rng: np.random.Generator) -> Record:
        if self._aside:
            return blind_record(case, self._mix, self._writer, rng)
        return phantom_record(case, self._mix, self._writer, rng, self._latents)
