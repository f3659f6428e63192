"""`engine verify`: a run that a checkpoint made stands it, and any other does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.cli import main
from engine.display import display_image
from engine.engine import Engine
from engine.imaging import Window, open_image
from engine.loading import LoadedModel
from engine.request import DisplayImage, Sampling
from engine.tiny import tiny_model
from engine.trace import Event, Failed, LatentStep, TokenStep, Trace
from engine.trace_io import read_trace, write_trace
from engine.verification import LIMIT_FLOAT32, VerificationError, verify
from tests.integration.conftest import MakeRequest, picture
from tests.integration.test_loading import save
from tests.unit.imaging.dicom_files import to_file


def run(engine: Engine, request: object) -> Trace:
    trace = Trace.from_events(engine.stream(request))
    assert not isinstance(trace.events[-1], Failed), trace.events[-1]
    return trace


def changed(trace: Trace, change: Callable[[Event], Event]) -> Trace:
    return Trace.from_events(change(event) for event in trace)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "direct"},
        {"method": "latent"},
        {"method": "latent", "latents": "noise"},
        {"method": "zoom", "entropy_threshold": 1.0},
        {"method": "zoom", "entropy_threshold": 1.0, "skip_crops": (1,)},
        {"method": "auto", "sampling": Sampling(temperature=1.0), "seed": 4},
    ],
)
def test_a_run_of_the_checkpoint_stands(
    engine: Engine, make_request: MakeRequest, changes: dict[str, object]
) -> None:
    request = make_request(**changes)
    trace = run(engine, request)
    found = verify(engine, request.image, trace)

    assert found.agrees
    assert found.limit == LIMIT_FLOAT32
    assert len(found.recorded) == len(trace.tokens)
    np.testing.assert_allclose(found.recorded, found.replayed, atol=1e-4)


def test_a_word_written_in_is_found(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct")
    trace = run(engine, request)
    at = len(trace.tokens) // 2

    def other_word(event: Event) -> Event:
        if isinstance(event, TokenStep) and event.index == at:
            return replace(event, token_id=(event.token_id + 1) % 200)
        return event

    found = verify(engine, request.image, changed(trace, other_word))
    assert not found.agrees
    # Nothing before it has changed.
    assert all(found.difference(index) < LIMIT_FLOAT32 for index in range(at))
    assert found.difference(at) > LIMIT_FLOAT32


def test_latents_of_another_run_are_found(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="latent")
    trace = run(engine, request)
    noise = run(engine, make_request(method="latent", latents="noise"))
    vectors = iter([event.vector for event in noise if isinstance(event, LatentStep)])

    swapped = changed(
        trace,
        lambda event: (
            replace(event, vector=next(vectors)) if isinstance(event, LatentStep) else event
        ),
    )
    assert not verify(engine, request.image, swapped).agrees


def test_another_checkpoint_is_found(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct")
    trace = run(engine, request)
    other = tiny_model()
    with torch.no_grad():
        # The smallest change that matters: one weight matrix, by a hundredth.
        other.model.lm_head.weight.mul_(1.01)

    assert not verify(Engine(other), request.image, trace).agrees


def test_a_number_that_is_none_does_not_agree(engine: Engine, make_request: MakeRequest) -> None:
    request = make_request(method="direct")
    trace = run(engine, request)
    found = verify(engine, request.image, trace)
    broken = replace(found, replayed=(float("nan"), *found.replayed[1:]))

    assert broken.worst == 0
    assert not broken.agrees


def test_another_image_is_refused(engine: Engine, make_request: MakeRequest) -> None:
    trace = run(engine, make_request(method="direct"))
    with pytest.raises(VerificationError, match="--frame, --window"):
        verify(engine, DisplayImage(pixels=picture(7)), trace)
    with pytest.raises(VerificationError, match="--frame, --window"):
        verify(engine, DisplayImage(pixels=picture(0, 200, 600)), trace)


@pytest.mark.parametrize("changes", [{"bottleneck": True}, {"latents": "blind"}])
def test_a_run_under_a_mask_of_its_own_is_refused(
    engine: Engine, make_request: MakeRequest, changes: dict[str, object]
) -> None:
    request = make_request(method="latent", **changes)
    with pytest.raises(VerificationError, match="cannot be replayed"):
        verify(engine, request.image, run(engine, request))


def test_numbers_that_do_not_fit_the_model_go_nowhere(
    engine: Engine, loaded: LoadedModel, make_request: MakeRequest
) -> None:
    request = make_request(method="latent")
    trace = run(engine, request)
    beyond = loaded.model.config.get_text_config().vocab_size

    for word in (beyond, -1):
        unknown = changed(
            trace, lambda e, word=word: replace(e, token_id=word) if isinstance(e, TokenStep) else e
        )
        with pytest.raises(VerificationError, match="does not know"):
            verify(engine, request.image, unknown)
    short = changed(
        trace, lambda e: replace(e, vector=e.vector[:-4]) if isinstance(e, LatentStep) else e
    )
    with pytest.raises(VerificationError, match="another size"):
        verify(engine, request.image, short)
    with pytest.raises(VerificationError, match="no token"):
        verify(engine, request.image, Trace.from_events(list(trace)[:1]))


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
    assert "8 tokens replayed." in captured.out
    assert captured.out.endswith("This checkpoint computes this run.\n")

    assert main(["verify", *map(str, words), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"]
    assert len(report["recorded"]) == len(report["replayed"]) == report["tokens"] == 8
    assert report["largest_difference_nats"] < report["limit_nats"] == LIMIT_FLOAT32

    other = tiny_model()
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.01)
    words[-1] = save(other, tmp_path / "other")
    assert main(["verify", *map(str, words)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "does not compute this run" in captured.out


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
    empty = tmp_path / "empty.radtrace.zip"
    write_trace(empty, list(read_trace(saved))[:1])
    capsys.readouterr()
    for words, says in (
        ((saved, other), "other.dcm is not the file that the run was about"),
        ((saved, image, "--window", "100", "50"), "give the frame and the window"),
        ((saved, image, "--frame", "3"), "frame"),
        ((saved, tmp_path / "none.dcm"), "cannot be opened"),
        ((text, image), "saved trace"),
        ((empty, image), "no token"),
    ):
        status = main(["verify", *map(str, words), "--checkpoint", str(checkpoint)])
        captured = capsys.readouterr()
        assert (status, captured.out, captured.err.count("\n")) == (2, "", 1), says
        assert says in captured.err


def test_the_chosen_window_is_taken_from_the_trace(image: Path) -> None:
    """Else the command above would have had to be given it once more."""
    source = open_image(image)
    own, chosen = display_image(source), display_image(source, Window(1500.0, 900.0))
    assert not np.array_equal(own.pixels, chosen.pixels)
