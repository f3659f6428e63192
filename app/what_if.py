"""What a changed run needs of runs before it.

It is compared with the last run of the same request without a change, and may be given the inner
steps of a run on another image. What is covered stays covered from run to run, until it is taken
off: beside another change it is no change, and alone it is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.view import RunView
from engine.trace import Event, LatentStep

Json = dict[str, Any]

# Runs without a change that a tab keeps for its open image.
MAX_BASELINES: Final = 16

# Facts of a run that must be equal for a change to be the only difference, in the words in which
# the page names them.
_NAMES: Final = {
    "question": "the question",
    "options": "the answer options",
    "method": "the method",
    "window": "the window",
    "seed": "the seed",
    "temperature": "the temperature",
    "max_new_tokens": "the limit on steps",
    "max_crops": "the number of closer looks",
    "latent_steps": "the number of inner steps",
    "threshold": "the limit from which it looks again",
}


@dataclass(frozen=True, slots=True)
class Baseline:
    """A run of the open image without a change, but for what was covered.

    Attributes:
        model: key of the one that made it.
        asked: the facts that say what was asked.
        covered: the regions that were, as the facts of a run tell them.
        answer: in words; empty if none could be read.
        probabilities: of the options at its end.
    """

    model: str
    asked: Json
    covered: Json
    answer: str
    probabilities: Sequence[float]


def baseline_of(view: RunView, model: str) -> Baseline | None:
    """The run as something to compare with; None where it was changed or has not ended by itself.

    Args:
        view: of the run.
        model: key of the one that made it.
    """
    if view.run is None or view.status in ("running", "stopped", "failed"):
        return None
    if _changed_beside(view.run):
        return None
    answer = next((item for item in reversed(view.items) if item[0] == "a"), None)
    belief = next((item for item in reversed(view.items) if item[0] == "b"), None)
    probabilities = (answer[4] if answer else []) or (belief[3] if belief else [])
    covered = view.run["changes"]["occlude"]
    return Baseline(model, _asked(view.run), covered, answer[1] if answer else "", probabilities)


@dataclass(frozen=True, slots=True)
class Donor:
    """The inner steps of a run without a change, for runs on other images.

    Attributes:
        model: key of the one that made it.
        image: SHA-256 of the file that it saw.
        latents: what each step was fed, as the engine takes them.
        title: of the image among the samples; empty for one that was opened from a file.
        question: that was asked.
    """

    model: str
    image: str
    latents: tuple[bytes, ...]
    title: str = ""
    question: str = ""

    def to_json(self) -> Json:
        """What the page says of it."""
        return {"title": self.title, "question": self.question}


def with_donor(
    donors: Sequence[Donor], view: RunView, model: str, events: Iterable[Event], title: str = ""
) -> list[Donor]:
    """The donors with a run that has ended, where it may be one.

    Of each model the newest run on each of its last two images is kept: one of them is another
    image than any that is open.

    Args:
        donors: so far, the newest last.
        view: of the run.
        model: key of the one that made it.
        events: of the run.
        title: of the image among the samples; empty for one that was opened from a file.
    """
    latents = tuple(event.vector for event in events if isinstance(event, LatentStep))
    if view.run is None or not latents or baseline_of(view, model) is None:
        return list(donors)
    if view.run["changes"]["occlude"]:
        return list(donors)
    image = view.run["image"]["sha256"]
    others = [donor for donor in donors if donor.model != model]
    same = [donor for donor in donors if donor.model == model and donor.image != image]
    return [*others, *same[-1:], Donor(model, image, latents, title, view.run["question"])]


def donor_for(donors: Sequence[Donor], model: str, image: str) -> Donor | None:
    """The run whose inner steps the model took last on another file than this SHA-256's.

    None where there is none: the frames of a file are one image, and so is a file opened again.
    """
    for donor in reversed(donors):
        if donor.model == model and donor.image != image:
            return donor
    return None


def compared(baselines: Sequence[Baseline], view: RunView, model: str) -> Json | None:
    """What the page shows beside a changed run.

    Args:
        baselines: of the same image, the newest last.
        view: of the changed run.
        model: key of the one that makes it.

    Returns:
        `answer` and `probabilities` of the newest run without a change that was asked the same;
        where there is none, `differs` names what else is different from the newest one. None while
        nothing is known of the run, or where there is nothing to compare it with.
    """
    if view.run is None or not baselines:
        return None
    asked, covered = _asked(view.run), view.run["changes"]["occlude"]
    # Beside nothing else, what is covered is the change itself.
    same = covered if _changed_beside(view.run) else []
    for baseline in reversed(baselines):
        if (baseline.model, baseline.asked, baseline.covered) == (model, asked, same):
            return {"answer": baseline.answer, "probabilities": list(baseline.probabilities)}
    last = baselines[-1]
    differs = ["the model"] if last.model != model else []
    differs += [name for key, name in _NAMES.items() if last.asked[key] != asked[key]]
    differs += ["what is covered"] if last.covered != same else []
    return {"differs": differs}


def _asked(run: Json) -> Json:
    window = run["image"]["window"]
    facts = {**run, "window": None if window is None else window[:2]}
    return {key: facts[key] for key in _NAMES}


def _changed_beside(run: Json) -> bool:
    """Whether something was changed beside what was covered."""
    changes = run["changes"]
    return changes["latents"] != "none" or any(
        changes[name] for name in ("skip_crops", "moved_crops")
    )
