"""A stage with its weights spread by FSDP2 over processes on the CPU.

`accelerate launch --config_file training/configs/accelerate/fsdp2.yaml
tests/integration/sharded_run.py sft CONFIG`. Accelerate offers FSDP on accelerators alone; torch
shards on the CPU as well: the stage is told that it runs under FSDP, and all the rest is what runs
on GPUs.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from training import accelerated
from training.cli import main


class Sharding(Accelerator):  # type: ignore[misc]
    """As the file given to the launcher sets it up, and no setting besides."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # The launcher has put every key of `fsdp_config` into the environment, whence the plugin
        # reads it. On a CPU accelerate makes the plugin and leaves it out of the state.
        plugin = FullyShardedDataParallelPlugin()
        if self.mixed_precision != "no":
            plugin.set_mixed_precision(self.mixed_precision)
        self.state.fsdp_plugin = plugin
        self.state.distributed_type = DistributedType.FSDP
        # Every new view of the state is copied from this one.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    accelerated.Accelerator = Sharding  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
