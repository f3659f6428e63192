"""A stage with its weights spread by DeepSpeed's ZeRO-3 over processes on the CPU.

`accelerate launch --config_file … tests/integration/deepspeed_run.py sft CONFIG`, with
`DS_ACCELERATOR=cpu`. Accelerate starts DeepSpeed on accelerators alone; it shards on the CPU as
well: accelerate is told that there is one, and all the rest is what runs on GPUs.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from training import accelerated
from training.cli import main


class OnTheCpu(Accelerator):  # type: ignore[misc]
    """Asks for no CPU, and gets it as there is nothing else."""

    def __init__(self, *, cpu: bool, **settings: Any) -> None:
        del cpu
        super().__init__(cpu=False, **settings)


def _gloo(*_: object) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_CPU


if __name__ == "__main__":
    PartialState._prepare_backend = _gloo
    accelerated.Accelerator = OnTheCpu  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
