"""How often the policy that training begins with answers each prompt: too often or never is left.

A prompt that is always or never answered right teaches little (methods 2.5.4, 3.6). The rates
are read once, before training, and kept in a file to which every prompt adds a line, so that a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.checkpoints import write_whole
from training.config import ConfigError
from training.replicas import Replicas

RATES_FILE: Final = "pass_rates.jsonl"
# Prompts between lines of progress.
_SAID_EVERY: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRateConfig:
    """Which prompts are kept.

    Attributes:
        rollouts: of every prompt; 0: all prompts are kept, and none is rolled out.
        above: least share of right answers, which is itself too few.
        up_to: highest share of right answers.
    """

    rollouts: int = 0
    above: float = 0.0
    up_to: float = 0.9

    def __post_init__(self) -> None:
        if self.rollouts < 0 or self.rollouts == 1:
            raise ValueError(f"rollouts must be 0 or at least 2, not {self.rollouts}.")
        if not 0.0 <= self.above < self.up_to <= 1.0:
            raise ValueError(
                f"above and up_to must lie in 0 to 1, above below up_to, not {self.above} "
                f"and {self.up_to}."
            )


def kept_prompts(
    folder: Path,
    count: int,
    config: PassRateConfig,
    rate_of: Callable[[int], float],
    report: Callable[[str], None],
    replicas: Replicas | None = None,
) -> list[int]:
    """Numbers of the prompts whose pass rate lies in `(above, up_to]`.

    Args:
        folder: of the run; holds the file, which the main process writes.
        count: of prompts.
        config: which are kept.
        rate_of: rolls a prompt out; share of right answers.
        report: takes one line of progress.
        replicas: that take prompts in turn; those that a launcher has started by default.

    Raises:
        ConfigError: none is left.
    """
    if not config.rollouts:
        return list(range(count))
    together = replicas or Replicas()
    if together.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    with together.main_first():
        rates = _read(folder / RATES_FILE)
    together.wait()
    left = [number for number in range(count) if number not in rates]
    with contextlib.ExitStack() as stack:
        file = None
        if together.is_main:
            file = stack.enter_context((folder / RATES_FILE).open("a", encoding="utf-8"))
        for first in range(0, len(left), together.count):
            numbers = left[first : first + together.count]
            found = together.interleaved([rate_of(number) for number in together.own(numbers)])
            for number, rate in zip(numbers, found, strict=True):
                rates[number] = rate
                if file is None:
                    continue
                file.write(json.dumps({"prompt": number, "rate": rate}) + "\n")
                file.flush()
                if (number + 1) % _SAID_EVERY == 0:
                    report(f"pass rates: {number + 1} of {count} prompts")
    kept = [n for n in range(count) if config.above < rates[n] <= config.up_to]
    if not kept:
        raise ConfigError(
            f"No prompt has a pass rate above {config.above} and up to {config.up_to}: widen "
            "pass_rate, or begin with another checkpoint."
        )
    if together.is_main:
        report(f"pass rates: {len(kept)} of {count} prompts are kept")
    return kept


def _read(path: Path) -> dict[int, float]:
    """Rates read so far; drops a line that was cut by a stop."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_whole(path, lambda file: file.write(whole.encode()))
    records = [json.loads(line) for line in whole.splitlines()]
    return {record["prompt"]: record["rate"] for record in records}
