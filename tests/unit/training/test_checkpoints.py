"""State files: what they hold, and what they refuse."""

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from training.checkpoints import (
    kept_state,
    load_state,
    optimizer_kind,
    save_state,
    step_back,
    trained_state,
    write_whole,
)
from training.loop import StepsConfig, optimizer_for


def half_frozen() -> torch.nn.Sequential:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    module[0].weight.requires_grad_(False)
    return module


def adam(module: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda file: file.write(b"first"))

    def broken(file: BinaryIO) -> None:
        file.write(b"second")
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, broken)
    assert path.read_bytes() == b"first"
    write_whole(path, lambda file: file.write(b"third"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"third"


def test_frozen_parameters_are_not_saved_and_buffers_are(tmp_path: Path) -> None:
    module = half_frozen()
    module[1].running_mean += 5.0
    assert "0.weight" not in trained_state(module)
    save_state(tmp_path, {"part": module}, adam(module), 4, {"loss": 1.5})

    other = half_frozen()
    weight = other[0].weight.clone()
    assert load_state(tmp_path, {"part": other}, adam(other)) == (4, {"loss": 1.5})
    assert torch.equal(other[1].running_mean, module[1].running_mean)
    assert torch.equal(other[0].bias, module[0].bias)
    assert torch.equal(other[0].weight, weight)


def test_a_state_of_before_windows_were_kept_is_read(tmp_path: Path) -> None:
    """Runs of earlier versions go on: everything was in the state, frozen or not."""
    module = half_frozen()
    optimizer = adam(module)
    old = {"step": 7, "optimizer": optimizer.state_dict(), "part": module.state_dict()}
    torch.save(old, tmp_path / "state.pt")
    other = half_frozen()
    assert load_state(tmp_path, {"part": other}, adam(other)) == (7, {})
    assert torch.equal(other[0].weight, module[0].weight)


def test_no_state_is_step_zero(tmp_path: Path) -> None:
    module = half_frozen()
    assert load_state(tmp_path, {"part": module}, adam(module)) == (0, {})


@pytest.mark.parametrize("change", ["shape", "missing", "module", "trained"])
def test_a_state_of_another_model_is_refused(tmp_path: Path, change: str) -> None:
    module = half_frozen()
    save_state(tmp_path, {"part": module}, adam(module), 1, {})
    other, name = half_frozen(), "part"
    if change == "shape":
        other[1] = torch.nn.BatchNorm1d(4)
    elif change == "missing":
        other.append(torch.nn.Linear(3, 3))
    elif change == "module":
        name = "else"
    else:
        other[0].weight.requires_grad_(True)

    with pytest.raises(ValueError, match="of another model or trains other parameters"):
        load_state(tmp_path, {name: other}, adam(other))


def small(**changes: object) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A network after a step of the optimiser of a configuration."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 3, bias=False))
    config = StepsConfig(**{"steps": 1, "learning_rate": 0.1, **changes})
    optimizer = optimizer_for({"part": module}, config)
    module(torch.arange(4)).sum().backward()
    optimizer.step()
    return module, optimizer


def settings(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["factor"], group["weight_decay"]) for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("kept", "present", "said"),
    [
        ("adamw", "muon", "with AdamW, and this one has Muon and AdamW"),
        ("muon", "adamw", "with Muon and AdamW, and this one has AdamW"),
    ],
)
def test_a_state_of_another_optimiser_is_refused_by_its_name(
    tmp_path: Path, kept: str, present: str, said: str
) -> None:
    module, optimizer = small(optimizer=kept)
    save_state(tmp_path, {"part": module}, optimizer, 1, {})
    other, wanted = small(optimizer=present)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=f"{said}: set optimizer as it was"):
        load_state(tmp_path, {"part": other}, wanted)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_optimisers_whose_states_look_alike_are_told_apart(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 3, bias=False)
    save_state(tmp_path, {"part": module}, torch.optim.AdamW(module.parameters()), 1, {})
    with pytest.raises(ValueError, match="with AdamW, and this one has Adam:"):
        load_state(tmp_path, {"part": module}, torch.optim.Adam(module.parameters()))


def test_a_state_of_before_kinds_were_kept_is_read(tmp_path: Path) -> None:
    module, optimizer = small(optimizer="muon")
    save_state(tmp_path, {"part": module}, optimizer, 3, {})
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.pop("optimizer_kind") == optimizer_kind(optimizer) == "Muon and AdamW"
    torch.save(state, tmp_path / "state.pt")
    other, wanted = small(optimizer="muon")
    assert load_state(tmp_path, {"part": other}, wanted) == (3, {})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_goes_on_takes_the_settings_of_its_configuration(
    tmp_path: Path, optimizer: str
) -> None:
    module, kept = small(optimizer=optimizer, weight_decay=0.05)
    save_state(tmp_path, {"part": module}, kept, 1, {})
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part in state["optimizer"].get("parts", [state["optimizer"]]):
        for group in part["param_groups"]:
            group["factor"] = 9.0
    torch.save(state, tmp_path / "state.pt")
    other, present = small(optimizer=optimizer, weight_decay=0.2)
    wanted = settings(present)
    assert {decay for _, decay in wanted} == {0.2}

    load_state(tmp_path, {"part": other}, present)

    assert settings(present) == wanted
    # What the optimisers themselves step with, too.
    parts = getattr(present, "parts", (present,))
    assert [pair for part in parts for pair in settings(part)] == wanted


def test_the_state_before_the_last_is_kept_and_gone_back_to(tmp_path: Path) -> None:
    module = half_frozen()
    for step in (2, 4, 6):
        save_state(tmp_path, {"part": module}, adam(module), step, {})

    assert step_back(tmp_path, 7) == 6
    assert step_back(tmp_path, 6) == 4
    assert load_state(tmp_path, {"part": module}, adam(module))[0] == 4
    assert step_back(tmp_path, 4) == 0
    assert kept_state(tmp_path) is None
    assert load_state(tmp_path, {"part": module}, adam(module)) == (0, {})


def test_a_state_that_alone_is_left_is_gone_on_from(tmp_path: Path) -> None:
    """A process was killed between the two renames of a save."""
    module = half_frozen()
    for step in (2, 4):
        save_state(tmp_path, {"part": module}, adam(module), step, {})
    (tmp_path / "state.pt").unlink()
    assert load_state(tmp_path, {"part": module}, adam(module))[0] == 2
    save_state(tmp_path, {"part": module}, adam(module), 4, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.former.pt", "state.pt"]


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    module = half_frozen()
    with pytest.raises(ValueError, match="cannot be called 'step'"):
        save_state(tmp_path, {"step": module}, adam(module), 1, {})
