"""The memory that a training needs: its tensors counted, and the peak as the system tells it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..runs.memory import process_memory, restart_peak


def footprint(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of a network's tensors, their gradients and the optimizers' states, and their sum.

    `params_trained` counts the parameters that take gradients.
    """
    parameters = list(network.parameters())
    states = [
        value for each in optimizers for state in each.state.values() for value in state.values()
    ]
    found = {
        "bytes_weights": _bytes([*parameters, *network.buffers()]),
        "bytes_gradients": _bytes(p.grad for p in parameters if p.grad is not None),
        "bytes_optimizer": _bytes(value for value in states if isinstance(value, Tensor)),
    }
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return {**found, "bytes_all": sum(found.values()), "params_trained": trained}


def peak_memory(device: torch.device, restart: bool = False) -> int:
    """Bytes held at the most since the last `restart`: of the process, or of torch on a GPU.

    Where the system cannot restart the count of a process it is the peak since that began.
    """
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if restart:
        restart_peak()
    return process_memory("VmHWM")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
