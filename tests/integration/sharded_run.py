"""A stage with its weights spread by FSDP2 over processes on the CPU.

`torchrun … tests/integration/sharded_run.py sft CONFIG`. Accelerate offers FSDP on accelerators
alone; torch shards on the CPU as well: the stage is told that it runs under FSDP, and all the rest
is what runs on GPUs.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from training import accelerated
from training.cli import main


class Sharding(Accelerator):  # type: ignore[misc]
    """As `training/configs/accelerate/fsdp2.yaml` sets it up, in the precision of the run."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"],
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,
            cpu_offload=False,
        )
        self.state.distributed_type = DistributedType.FSDP
        # Every new view of the state is copied from this one.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    accelerated.Accelerator = Sharding  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
