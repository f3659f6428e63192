"""Several processes that train one model, on one or more machines, through accelerate.

`accelerate launch` and `torchrun` start them; without either there is one. Gradients of a step
are the sum over all processes, whatever wraps the model: losses are divided by counts of the
whole step beforehand (`training.network`), so that two processes compute what one would.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.checkpoints import (
    check_kind,
    load_state,
    optimizer_kind,
    present_settings,
    save_state,
    step_back,
)
from training.processes import ItemT

SHARDED_FOLDER: Final = "state"
WINDOW_FILE: Final = "window.pt"
# How long a thread is given for what takes it microseconds, once it has a core.
LAST_EXCHANGE_SECONDS: Final = 1.0


def parts_of_each(parts: int, count: int) -> int:
    """How many of the parts of a step each of `count` processes takes.

    Raises:
        ValueError: they cannot be shared evenly.
    """
    if parts % count:
        raise ValueError(
            f"A step has {parts} parts, which {count} processes cannot share evenly: change "
            "language.batch, mix.letters or tuning.micro_batch."
        )
    return parts // count


class Accelerated:
    """Processes as accelerate knows them.

    Args:
        unused: whether some trained parameters may have no part in a step's last batch.
    """

    def __init__(self, *, unused: bool = False) -> None:
        self._accelerator: Any = Accelerator(
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        self._wrapped: nn.Module | None = None
        if self._is_deepspeed:
            # Left set, transformers would spread weights as it reads them, those of a frozen tower
            # too, which runs by itself before anything is trained.
            unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this one writes files and reports."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds all weights (FSDP, DeepSpeed)."""
        kind = self._accelerator.distributed_type
        return kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    @property
    def keeps_matrices(self) -> bool:
        """Whether an optimiser is given matrices as they are; DeepSpeed gives it flat pieces."""
        return not self._is_deepspeed

    @property
    def _is_deepspeed(self) -> bool:
        return bool(self._accelerator.distributed_type == DistributedType.DEEPSPEED)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does what is inside before the others do."""
        with self._accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Until all processes have come here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Takes leave of the other processes, once all have come here; the end of all exchange.

        A process that only ends may be torn down under a thread that still listens for them.
        """
        self.wait()
        if self.count > 1:
            # The thread of gloo that carried out this last exchange still has to let go of its
            # tensors, for which it needs the interpreter. Torch joins that thread without giving
            # the interpreter away, when the wrapped model goes, and so would wait for ever; and an
            # interpreter that is taken down under it aborts. Both were seen on busy machines.
            time.sleep(LAST_EXCHANGE_SECONDS)
            self._accelerator.end_training()

    @property
    def index(self) -> int:
        """Of this process, from 0."""
        return int(self._accelerator.process_index)

    def own(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's share: every `count`-th, from its own number on."""
        return items[self.index :: self.count]

    def gathered(self, items: Sequence[ItemT]) -> list[ItemT]:
        """The items of all processes, one process after the other; called by all of them."""
        return list(items) if self.count == 1 else list(gather_object(list(items)))

    def interleaved(self, own: Sequence[ItemT]) -> list[ItemT]:
        """The whole, of which every process has taken its `own` share; called by all of them."""
        shares = self.gathered([list(own)])
        whole: list[ItemT | None] = [None] * sum(map(len, shares))
        for index, share in enumerate(shares):
            whole[index :: self.count] = share
        return whole  # type: ignore[return-value]

    def expect(self, parts: int) -> None:
        """Says how many parts a step has, over all processes.

        Raises:
            ValueError: they cannot be shared evenly.
        """
        own = parts_of_each(parts, self.count)
        self._accelerator.gradient_accumulation_steps = own
        if self._is_deepspeed:
            settings = self._accelerator.state.deepspeed_plugin.deepspeed_config
            # Accelerate reads it off a data loader, which there is none of here.
            settings["train_micro_batch_size_per_gpu"] = 1
            settings["gradient_accumulation_steps"] = own

    def shared(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's share."""
        return self.own(items)

    def prepared(
        self, network: nn.Module | None, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module | None, torch.optim.Optimizer]:
        """Network and optimiser on the device, wrapped."""
        self._wrapped, wrapped_optimizer = self._accelerator.prepare(network, optimizer)
        return self._wrapped, wrapped_optimizer

    def part(self, network: nn.Module | None) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged after the last part of a step only."""
        context: contextlib.AbstractContextManager[None] = self._accelerator.accumulate(network)
        return context

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a part; accelerate takes means where sums are meant."""
        scale = self.count * self._accelerator.gradient_accumulation_steps
        self._accelerator.backward(loss * scale)

    def clipped(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scales the gradients; returns their norm."""
        if self._accelerator.is_fsdp2:
            # Accelerate compares lists of parameters, which fails unless they stand in the order
            # of the model: ours stand in that of the optimiser.
            norm: Any = torch.nn.utils.clip_grad_norm_(list(parameters), most)
            return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        return float(self._accelerator.clip_grad_norm_(parameters, most))

    def added(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes; one may lack what another has."""
        if self.count == 1:
            return dict(numbers)
        total: dict[str, float] = {}
        for own in gather_object([dict(numbers)]):
            for name, number in own.items():
                total[name] = total.get(name, 0.0) + number
        return total

    def save(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        step: int,
        window: Mapping[str, float],
    ) -> None:
        """One state file; where the weights are sharded, a folder with every process's part.

        The state before it is kept beside it.
        """
        if not self.is_sharded:
            if self.is_main:
                save_state(folder, modules, optimizer, step, window)
            self.wait()
            return
        partial, (whole, former) = folder / f"{SHARDED_FOLDER}.partial", _generations(folder)
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self.wait()
        self._accelerator.save_state(str(partial))
        self.wait()
        if self.is_main:
            kept = {
                "step": step,
                "window": dict(window),
                "optimizer_kind": optimizer_kind(optimizer),
            }
            torch.save(kept, partial / WINDOW_FILE)
            if whole.exists():
                shutil.rmtree(former, ignore_errors=True)
                os.replace(whole, former)
            os.replace(partial, whole)
        self.wait()

    def load(
        self, folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, float]]:
        """Reads what `save` wrote."""
        if not self.is_sharded:
            return load_state(folder, modules, optimizer)
        found = _kept_folder(folder)
        if found is None:
            return 0, {}
        state = _window_of(found)
        check_kind(state, optimizer, folder)
        with present_settings(optimizer):
            self._accelerator.load_state(str(found))
        return int(state["step"]), dict(state["window"])

    def step_back(self, folder: Path, step: int) -> int:
        """Leaves the last state of before a step; see `training.checkpoints.step_back`."""
        if not self.is_sharded:
            kept = step_back(folder, step) if self.is_main else 0
        else:
            kept = self._step_back_sharded(folder, step) if self.is_main else 0
        return int(self.added({"kept": kept})["kept"])

    def _step_back_sharded(self, folder: Path, step: int) -> int:
        whole, former = _generations(folder)
        if whole.exists() and int(_window_of(whole)["step"]) >= step:
            shutil.rmtree(whole)
        if not whole.exists() and former.exists():
            os.replace(former, whole)
        return int(_window_of(whole)["step"]) if whole.exists() else 0

    def whole_state(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """All weights of a network, gathered to the main process; empty elsewhere."""
        # DeepSpeed's engine alone knows where all of them lie; FSDP changes the network itself.
        holder = self._wrapped if self._is_deepspeed else network
        gathered: dict[str, torch.Tensor] = self._accelerator.get_state_dict(holder)
        return gathered if self.is_main else {}


def _generations(folder: Path) -> tuple[Path, Path]:
    """The folder of the last state of a sharded run, and that of the one before it."""
    return folder / SHARDED_FOLDER, folder / f"{SHARDED_FOLDER}.former"


def _kept_folder(folder: Path) -> Path | None:
    """What a sharded run goes on from; None where there is none."""
    # A process that was killed between the two renames of a save has left the former one alone.
    return next((path for path in _generations(folder) if (path / WINDOW_FILE).is_file()), None)


def _window_of(path: Path) -> dict[str, Any]:
    """What is kept beside the weights: steps done, numbers not logged yet, the optimiser's name."""
    kept: dict[str, Any] = torch.load(path / WINDOW_FILE, map_location="cpu", weights_only=True)
    return kept
