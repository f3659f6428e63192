"""`engine verify`: a run that a checkpoint made stands it, and whatever was changed is found."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.cli import main
from engine.engine import Engine
from engine.geometry import Box
from engine.imaging import open_image, render
from engine.loading import LoadedModel, load_checkpoint
from engine.rasters import DISPLAY_SIDE, encoded_png
from engine.request import DisplayImage, Interventions, Sampling
from engine.tiny import tiny_model
from engine.trace import (
    Answered,
    Belief,
    Event,
    Failed,
    Finished,
    LatentStep,
    Reground,
    RunStarted,
    TokenStep,
    Trace,
)
from engine.trace_io import read_trace, write_trace
from engine.verification import HALF, SINGLE, VerificationError, verify
from tests.integration.conftest import MakeRequest, picture
from tests.integration.test_loading import save
from tests.unit.imaging.dicom_files import to_file

Change = Callable[[Any], Event]


def run(engine: Engine, request: object) -> Trace:
    trace = Trace.from_events(engine.stream(request))
    assert not isinstance(trace.events[-1], Failed), trace.events[-1]
    return trace


def changed(trace: Trace, kind: type[Event], change: Change, at: int = 0) -> Trace:
    """The trace with one event of a kind changed."""
    places = [place for place, event in enumerate(trace) if isinstance(event, kind)]
    events = list(trace)
    events[places[at]] = change(events[places[at]])
    return Trace.from_events(events)


RUNS: dict[str, dict[str, Any]] = {
    "direct": {"method": "direct"},
    "open": {"method": "direct", "options": ()},
    "without": {"method": "direct", "belief": False, "alternatives": 0, "layers": "none"},
    "all-layers": {"method": "direct", "layers": "all"},
    "latent": {"method": "latent"},
    "noise": {"method": "latent", "latents": "noise"},
    "blind": {"method": "latent", "latents": "blind"},
    "skip": {"method": "latent", "latents": "skip"},
    "bottleneck": {"method": "latent", "bottleneck": True},
    "zoom": {"method": "zoom", "entropy_threshold": 1.0, "max_new_tokens": 60},
    "no-crops": {"method": "zoom", "entropy_threshold": 1.0, "max_crops": 0},
    "skip-crop": {"method": "zoom", "entropy_threshold": 1.0, "skip_crops": (1,)},
    "short": {"method": "zoom", "entropy_threshold": 1.0, "max_new_tokens": 3},
    "sampled": {"method": "auto", "sampling": Sampling(temperature=1.0), "seed": 4},
    "nucleus": {"method": "zoom", "sampling": Sampling(temperature=1.0, top_p=0.9), "seed": 1},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_the_checkpoint_stands(
    engine: Engine, make_request: MakeRequest, name: str
) -> None:
    request = make_request(**{"layers": "default", **RUNS[name]})
    trace = run(engine, request)
    found = verify(engine, request.image, trace)

    assert found.differences == ()
    assert found.tolerance is SINGLE
    assert found.tokens == len(trace.tokens) > 0
    assert found.events == len(trace)
    assert found.largest_nats < 1e-4
    drawn = any("whether this seed draws them" in note for note in found.notes)
    assert drawn == (name in ("sampled", "nucleus"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [5, 30])
def test_sampled_runs_of_any_length_stand(
    engine: Engine, make_request: MakeRequest, seed: int, budget: int
) -> None:
    """Random weights write anything: tags that do not close, calls that cannot be carried out."""
    request = make_request(
        method="zoom",
        seed=seed,
        sampling=Sampling(temperature=1.5),
        max_new_tokens=budget,
        entropy_threshold=2.0,
        seed_of_image=seed,
        layers="default",
    )
    assert verify(engine, request.image, run(engine, request)).differences == ()


EMBEDDED = Path(__file__).resolve().parents[2] / "assets/checkpoints/medvr"
SAMPLE = Path(__file__).resolve().parents[2] / "assets/samples/phantom-1.dcm"


@pytest.fixture(scope="module")
def zoomed() -> tuple[Engine, DisplayImage, Trace]:
    """A run of the embedded model with a crop of its own."""
    from engine.display import display_image

    engine = Engine(load_checkpoint(EMBEDDED, "cpu"))
    image = display_image(open_image(SAMPLE))
    from engine.request import Request

    request = Request(
        image=image,
        question="What is the margin of the nodule?",
        options=("smooth", "spiculated"),
        method="zoom",
    )
    trace = run(engine, request)
    assert trace.regrounds
    return engine, image, trace


def other_picture(png: bytes) -> bytes:
    pixels = render(open_image(png)).copy()
    rows, columns = pixels.shape[:2]
    pixels[rows // 2 : rows // 2 + 8, columns // 2 : columns // 2 + 8] ^= 0x40
    return encoded_png(pixels)


FORGERIES: dict[str, tuple[type[Event], Change, int, str]] = {
    "answer": (Answered, lambda e: replace(e, text="smooth or not"), 0, "answer text"),
    "option": (Answered, lambda e: replace(e, option=1 - (e.option or 0)), 0, "answer option"),
    "distribution": (
        Answered,
        lambda e: replace(e, probabilities=e.probabilities[::-1]),
        0,
        "answer",
    ),
    "belief": (Belief, lambda e: replace(e, probabilities=e.probabilities[::-1]), 0, "belief"),
    "words": (TokenStep, lambda e: replace(e, text=" no nodule at all"), 2, "text"),
    "entropy": (TokenStep, lambda e: replace(e, entropy_nats=e.entropy_nats + 0.1), 1, "entropy"),
    "sure": (TokenStep, lambda e: replace(e, logprob=e.logprob - 0.1), 1, "log-probability"),
    "forced": (TokenStep, lambda e: replace(e, forced=not e.forced), 3, "forced"),
    "alternatives": (
        TokenStep,
        lambda e: replace(
            e, alternatives=(replace(e.alternatives[0], text="x"), *e.alternatives[1:])
        ),
        1,
        "alternative",
    ),
    "attention": (
        TokenStep,
        lambda e: replace(
            e, attention=(replace(e.attention[0], values=e.attention[0].values[::-1]),)
        ),
        1,
        "heat map",
    ),
    "crop": (Reground, lambda e: replace(e, crop_png=other_picture(e.crop_png)), 0, "picture"),
    "total": (
        TokenStep,
        lambda e: replace(
            e, attention=tuple(replace(one, total=one.total * 0.9) for one in e.attention)
        ),
        1,
        "heat map",
    ),
    "limit-of-distance": (
        RunStarted,
        lambda e: replace(e, out_of_distribution=replace(e.out_of_distribution, threshold=1e6)),
        0,
        "distance threshold",
    ),
    "box": (Reground, lambda e: replace(e, box=(0.1, 0.1, 0.2, 0.2)), 0, "crop 1 box"),
    "box-of-original": (
        Reground,
        lambda e: replace(e, box_source_px=(1, 2, 30, 40)),
        0,
        "box_source_px",
    ),
    "display": (
        RunStarted,
        lambda e: replace(
            e, image=replace(e.image, display_png=other_picture(e.image.display_png))
        ),
        0,
        "display_png",
    ),
    "seen": (
        RunStarted,
        lambda e: replace(e, image=replace(e.image, seen_png=other_picture(e.image.seen_png))),
        0,
        "seen_png",
    ),
    "side": (
        RunStarted,
        lambda e: replace(e, image=replace(e.image, left_edge="left")),
        0,
        "left_edge",
    ),
    "spacing": (
        RunStarted,
        lambda e: replace(e, image=replace(e.image, spacing_mm=(9.0, 9.0))),
        0,
        "spacing_mm",
    ),
    "model": (
        RunStarted,
        lambda e: replace(e, model=replace(e.model, id="Better model")),
        0,
        "model id",
    ),
    "notices": (RunStarted, lambda e: replace(e, notices=()), 0, "notices"),
    "question": (
        RunStarted,
        lambda e: replace(e, request=replace(e.request, question="Is there a nodule?")),
        0,
        "log-probability",
    ),
    "reason": (Finished, lambda e: replace(e, reason="no_answer"), 0, "end reason"),
    "counts": (
        Finished,
        lambda e: replace(e, counts=replace(e.counts, crop=0)),
        0,
        "end crop",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_whatever_is_written_in_is_found(
    zoomed: tuple[Engine, DisplayImage, Trace], name: str
) -> None:
    engine, image, trace = zoomed
    kind, change, at, says = FORGERIES[name]
    found = verify(engine, image, changed(trace, kind, change, at))

    assert not found.agrees
    assert any(says in difference for difference in found.differences), found.differences


def test_the_untouched_run_stands(zoomed: tuple[Engine, DisplayImage, Trace]) -> None:
    """Else the forgeries would be found for another reason."""
    assert verify(*zoomed).differences == ()


def test_runs_from_before_a_fact_was_kept_stand(
    zoomed: tuple[Engine, DisplayImage, Trace],
) -> None:
    engine, image, trace = zoomed
    older = changed(
        trace,
        RunStarted,
        lambda e: replace(e, image=replace(e.image, left_edge="", spacing_kind="")),
    )
    assert verify(engine, image, older).agrees


AT = 3


def with_second_word(trace: Trace) -> Trace:
    """The run up to token `AT`, for which the second likeliest stands with its true numbers."""
    second = trace.tokens[AT].alternatives[1]
    swapped = changed(
        trace,
        TokenStep,
        lambda e: replace(e, token_id=second.token_id, text=second.text, logprob=second.logprob),
        AT,
    )
    return Trace.from_events(
        event for event in swapped if not (isinstance(event, TokenStep) and event.index > AT)
    )


def test_another_word_with_its_true_probability_is_found_at_temperature_zero(
    engine: Engine, make_request: MakeRequest
) -> None:
    """A forger can compute what another word would have had."""
    request = make_request(method="direct", layers="none", belief=False, options=())
    trace = run(engine, request)
    swapped = with_second_word(trace)
    found = verify(engine, request.image, swapped)
    assert any("nats below the likeliest" in one for one in found.differences)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.001), Sampling(temperature=1.0, top_p=1e-6)]
)
def test_a_word_that_the_sampling_cannot_draw_is_found(
    engine: Engine, make_request: MakeRequest, sampling: Sampling
) -> None:
    """A forger cannot hide another word behind a temperature that draws nothing else."""
    request = make_request(method="direct", layers="none", belief=False, options=())
    trace = run(engine, request)
    swapped = with_second_word(trace)
    said = changed(
        swapped, RunStarted, lambda e: replace(e, request=replace(e.request, sampling=sampling))
    )
    # What stands there is the likeliest of few: only a clear second is told from it.
    assert trace.tokens[AT].logprob - trace.tokens[AT].alternatives[1].logprob > 0.05
    found = verify(engine, request.image, said)
    assert any("nats below the likeliest" in one for one in found.differences)


@pytest.mark.parametrize("kept", [1, 4])
def test_a_run_that_was_cut_short_is_found(
    engine: Engine, make_request: MakeRequest, kept: int
) -> None:
    request = make_request(method="direct", layers="default")
    trace = run(engine, request)
    cut = Trace.from_events(
        event for event in trace if not (isinstance(event, TokenStep) and event.index >= kept)
    )
    without_end = Trace.from_events([event for event in trace if not isinstance(event, Finished)])

    assert not verify(engine, request.image, cut).agrees
    assert "the end of the run" in verify(engine, request.image, without_end).differences[0]


def test_a_stopped_run_stands_as_far_as_it_went(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct", layers="default")
    trace = run(engine, request)
    last = trace.events[-1]
    assert isinstance(last, Finished)
    early = [event for event in trace if not isinstance(event, Answered | Finished)][:6]
    stopped = Trace.from_events([*early, replace(last, reason="stopped")])
    found = verify(engine, request.image, stopped)

    assert found.agrees
    assert found.events == 6
    assert any("stopped" in note for note in found.notes)
    assert not found.is_whole


def test_the_label_of_an_intervention_is_found_by_its_latents(
    engine: Engine, make_request: MakeRequest
) -> None:
    request = make_request(method="latent", layers="default")
    plain = run(engine, request)
    noise = run(engine, make_request(method="latent", latents="noise", layers="default"))

    def labelled(name: str) -> Change:
        return lambda e: replace(
            e, request=replace(e.request, interventions=Interventions(latents=name))
        )

    for trace, name in ((plain, "noise"), (plain, "zero"), (noise, "none")):
        found = verify(engine, request.image, changed(trace, RunStarted, labelled(name)))
        assert any("latent 1" in one for one in found.differences), (name, found.differences)


def test_a_latent_of_another_run_is_found(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="latent", layers="default")
    trace = run(engine, request)
    noise = run(engine, make_request(method="latent", latents="noise"))
    vector = noise.latents[1].vector
    # One byte less is no vector of numbers at all.
    swapped = changed(trace, LatentStep, lambda e: replace(e, vector=vector), 1)
    short = changed(trace, LatentStep, lambda e: replace(e, vector=e.vector[:-1]), 1)

    for forged in (swapped, short):
        found = verify(engine, request.image, forged)
        assert "latent 2: fed in the trace" in found.differences[0]


def test_another_checkpoint_is_found(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct")
    trace = run(engine, request)
    other = tiny_model()
    with torch.no_grad():
        # The smallest change that matters: one weight matrix, by a hundredth.
        other.model.lm_head.weight.mul_(1.01)

    assert not verify(Engine(other), request.image, trace).agrees


def test_half_precision_is_let_pass_and_said(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct", layers="default")
    said = changed(
        run(engine, request),
        RunStarted,
        lambda e: replace(e, model=replace(e.model, dtype="bfloat16")),
    )
    found = verify(engine, request.image, said)

    assert found.agrees
    assert found.tolerance is HALF
    assert any("says that it was computed in bfloat16" in note for note in found.notes)


def test_another_image_is_found(engine: Engine, make_request: MakeRequest) -> None:
    trace = run(engine, make_request(method="direct", layers="default"))
    for pixels in (picture(7), picture(0, 200, 600)):
        found = verify(engine, DisplayImage(pixels=pixels), trace)
        assert any("seen_png" in one for one in found.differences)


def test_numbers_that_do_not_fit_the_model_go_nowhere(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    request = make_request(method="direct", layers="default")
    trace = run(engine, request)
    beyond = loaded.model.config.get_text_config().vocab_size
    banned = loaded.vocabulary.image_pad

    for word in (beyond, -1, banned, 2**40):
        forged = changed(trace, TokenStep, lambda e, w=word: replace(e, token_id=w), 1)
        found = verify(engine, request.image, forged)
        assert any("token 1 cannot be drawn there" in one for one in found.differences)


def test_a_flood_of_tokens_ends_at_the_budget(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct", layers="none", belief=False, max_new_tokens=4)
    trace = run(engine, request)
    token = trace.tokens[0]
    flood = Trace.from_events([*list(trace)[:-2], *[token] * 5000, *list(trace)[-2:]])
    found = verify(engine, request.image, flood)

    assert not found.agrees
    assert found.tokens <= 4


def polyglot(png: bytes) -> bytes:
    """A picture with something behind its end."""
    return png + b"DICM"


def transparent(png: bytes) -> bytes:
    pixels = render(open_image(png))
    shape = (*pixels.shape[:2], 4)
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, 255, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def with_words(png: bytes) -> bytes:
    buffer = io.BytesIO()
    words = PngInfo()
    words.add_text("Comment", "x" * 100)
    Image.open(io.BytesIO(png)).save(buffer, format="PNG", pnginfo=words)
    return buffer.getvalue()


@pytest.mark.parametrize("change", [polyglot, transparent, with_words])
def test_a_picture_that_may_show_two_things_is_refused(
    zoomed: tuple[Engine, DisplayImage, Trace], change: Callable[[bytes], bytes]
) -> None:
    engine, image, trace = zoomed
    forged = changed(trace, Reground, lambda e: replace(e, crop_png=change(e.crop_png)))
    with pytest.raises(VerificationError, match="no plain picture"):
        verify(engine, image, forged)


@pytest.mark.parametrize(
    "changes",
    [
        {"occlude": (Box(0.0, 0.0, 1.0, 1.0),)},
        {"occlude": (Box(0.1, 0.2, 0.3, 0.4), Box(0.9, 0.9, 1.0, 1.0))},
        {"image": DisplayImage(pixels=np.full((300, 300), 7, dtype=np.uint8))},
        {"image": DisplayImage(pixels=picture(0, 30, 5000))},
        {"image": DisplayImage(pixels=np.dstack([picture(0), picture(1), picture(2)]))},
        {"image": DisplayImage(pixels=picture(0, 100, 2600))},
    ],
    ids=["occluded", "partly", "blank", "narrow", "colour", "large"],
)
def test_runs_on_odd_pictures_stand(
    engine: Engine, make_request: MakeRequest, changes: dict[str, Any]
) -> None:
    request = make_request(method="direct", layers="default", **changes)
    assert verify(engine, request.image, run(engine, request)).differences == ()


def with_picture(trace: Trace, pixels: np.ndarray) -> Trace:
    """A run whose kept picture is another."""
    png = encoded_png(pixels, DISPLAY_SIDE)
    return changed(trace, RunStarted, lambda e: replace(e, image=replace(e.image, display_png=png)))


@pytest.mark.parametrize("side", [300, 2600])
def test_a_picture_that_shows_what_was_covered_is_said_to(
    engine: Engine, make_request: MakeRequest, side: int
) -> None:
    """As runs kept it before. Anything but the two pictures there can be is another one."""
    image = DisplayImage(pixels=picture(0, side, side))
    request = make_request(
        method="direct", layers="default", image=image, occlude=(Box(0.2, 0.2, 0.6, 0.6),)
    )
    trace = run(engine, request)
    assert verify(engine, image, trace).notes == ()

    found = verify(engine, image, with_picture(trace, image.pixels))
    assert found.agrees
    assert found.notes == ("The saved picture shows what was covered: run it again to share it.",)
    for place in (slice(0, side // 10), slice(side // 3, side // 2)):
        other = image.pixels.copy()
        other[place, side // 3 : side // 2] ^= 255
        found = verify(engine, image, with_picture(trace, other))
        assert [d.split(":")[0] for d in found.differences] == ["image.display_png"]
    smaller = verify(engine, image, with_picture(trace, image.pixels[1:]))
    assert [d.split(":")[0] for d in smaller.differences] == ["image.display_png"]


def test_failed_calls_are_counted_again(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct", layers="default")
    trace = run(engine, request)
    forged = changed(trace, Finished, lambda e: replace(e, failed_calls=2))
    assert verify(engine, request.image, forged).differences == ("end failed_calls: 2 / 0",)


def test_a_flood_of_words_is_cut_short(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct", layers="default")
    trace = run(engine, request)
    flood = changed(trace, TokenStep, lambda e: replace(e, text="\x7f" * 1_000_000), 1)
    found = verify(engine, request.image, flood)

    assert not found.agrees
    assert sum(map(len, found.differences)) < 5000


def test_what_holds_no_token_is_refused(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct")
    trace = run(engine, request)
    failed = Failed(seconds=0.0, code="x", message="Nothing was run.")

    for empty in (Trace.from_events(list(trace)[:1]), Trace.from_events([failed])):
        with pytest.raises(VerificationError, match="no token"):
            verify(engine, request.image, empty)


# --- the command --------------------------------------------------------------------------

RAMP = np.arange(400, dtype=np.uint16).reshape(20, 20) * 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model(), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "DOE_JOHN_1960.dcm"
    path.write_bytes(to_file(RAMP, WindowCenter=2000, WindowWidth=3000))
    return path


@pytest.fixture
def saved(checkpoint: Path, image: Path, tmp_path: Path) -> Path:
    """A run under a window of somebody's choice."""
    out = tmp_path / "run.radtrace.zip"
    words = ["trace", image, "Where is it?", "--checkpoint", checkpoint, "--max-new-tokens", 8]
    assert main([*map(str, words), "--window", "1500", "900", "--out", str(out)]) == 0
    return out


def test_the_command_says_whether_it_agrees(
    saved: Path,
    image: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    words = [saved, image, "--checkpoint", checkpoint]

    assert main(["verify", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "8 of them tokens" in captured.out
    assert captured.out.endswith("This checkpoint computes this run.\n")

    assert main(["verify", *map(str, words), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"]
    assert report["tokens"] == 8
    assert report["largest_difference_nats"] < report["limit_nats"] == SINGLE.nats
    assert report["differences"] == report["notes"] == []

    other = tiny_model()
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.01)
    words[-1] = save(other, tmp_path / "other")
    assert main(["verify", *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "does not compute this run" in captured.out


@pytest.mark.parametrize("is_old", [False, True], ids=["painted", "old"])
@pytest.mark.parametrize(
    "covered",
    [(), (Box(0.2, 0.2, 0.5, 0.5),), (Box(0.05, 0.05, 0.95, 0.95),)],
    ids=["whole", "partly", "mostly"],
)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_of_any_function_is_found_again(
    engine: Engine,
    make_request: MakeRequest,
    image: Path,
    function: str,
    covered: tuple[Box, ...],
    is_old: bool,
) -> None:
    """The page's presets bring functions of their own, and a trace names center and width."""
    from engine.display import display_image
    from engine.imaging import Window
    from engine.verification import image_of_run

    source = open_image(image)
    shown = display_image(source, Window(1500.0, 900.0, function), "preset")  # type: ignore[arg-type]
    request = make_request(method="direct", layers="default", image=shown, occlude=covered)
    trace = run(engine, request)
    if is_old:
        trace = with_picture(trace, shown.pixels)
    assert trace.started is not None
    again = image_of_run(source, trace.started)

    np.testing.assert_array_equal(again.pixels, shown.pixels)
    assert verify(engine, again, trace).agrees


def test_what_cannot_be_compared_is_one_line(
    saved: Path,
    image: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.dcm"
    other.write_bytes(to_file(RAMP[::-1], WindowCenter=2000, WindowWidth=3000))
    text = tmp_path / "text.radtrace.zip"
    text.write_text("no archive")
    trace = read_trace(saved)

    def written(name: str, events: list[Event]) -> Path:
        path = tmp_path / f"{name}.radtrace.zip"
        write_trace(path, events)
        return path

    def forged(name: str, **facts: Any) -> Path:
        change: Change = lambda e: replace(e, image=replace(e.image, **facts))  # noqa: E731
        return written(name, list(changed(trace, RunStarted, change)))

    assert trace.started is not None
    damaged = bytearray(trace.started.image.seen_png)
    damaged[60] ^= 0xFF
    failed = Failed(seconds=0.0, code="x", message="Nothing was run.")
    capsys.readouterr()
    for words, says in (
        ((saved, other), "other.dcm is not the file that the run was about"),
        ((saved, image, "--frame", "3"), "frame"),
        ((saved, tmp_path / "none.dcm"), "cannot be opened"),
        ((text, image), "saved trace"),
        ((written("empty", list(trace)[:1]), image), "no token"),
        ((written("failed", [failed]), image), "no token"),
        ((forged("window", window_center=None), image), "it is damaged"),
        ((forged("picture", seen_png=bytes(damaged)), image), "damaged"),
    ):
        status = main(["verify", *map(str, words), "--checkpoint", str(checkpoint)])
        captured = capsys.readouterr()
        assert (status, captured.out, captured.err.count("\n")) == (2, "", 1), says
        assert says in captured.err
