"""A frozen network spread over the devices of several processes, for models too large for one."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, accelerator: Accelerator) -> None:
    """Leaves each process with its share of the network's weights, on its device (FSDP2).

    A block's weights are gathered when it runs, forward and backward, and freed again. So from now
    on all processes have to call the network together, equally often.

    Args:
        network: on the CPU or on this process's device; frozen. Its blocks are the members of its
            own lists of modules.

    Raises:
        ValueError: there is only one process.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "shard spreads the generator over processes, and there is one: start several with "
            "accelerate launch or torchrun"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
