"""Sharding a frozen network over the devices of all processes, for models too large for one."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, accelerator: Accelerator) -> None:
    """Keep only this process's shard of the network's weights, on its device (FSDP2).

    The weights of a block are gathered when it runs, forward and backward, and freed afterwards.
    From then on, all processes must call the network together and equally often.

    Args:
        network: frozen, on the CPU or on this process's device. Its blocks are the members of its
            direct ModuleLists.

    Raises:
        ValueError: there is only one process.
    """
    if accelerator.num_processes == 1:
        raise ValueError(
            "shard needs several processes, but there is only one: start more with accelerate "
            "launch or torchrun"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
