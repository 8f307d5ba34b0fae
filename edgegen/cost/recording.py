"""The calls that a pipeline makes of its networks, kept to be made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .counting import is_compiled
from .tracker import components_of, parts_of


@dataclass
class NetworkCall:
    """One call of a network as a pipeline made it, to be made again.

    Attributes:
        name: `unet`, `text_encoder`, `vae.decoder`, …
        module: the network.
        args, kwargs: of its last call.
        times: how often it was called.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    times: int = 0

    def __call__(self) -> Any:
        return self.module(*self.args, **self.kwargs)


@contextmanager
def record_calls(target: Any) -> Iterator[dict[str, NetworkCall]]:
    """While open, the last call of each network of a pipeline is kept; name → call.

    Args:
        target: as for `CostTracker`. An autoencoder is taken as its encoder and decoder.

    Raises:
        ValueError: nothing to profile in the target, or a network that is compiled.
    """
    found: dict[str, NetworkCall] = {}
    hooks = []
    for component, whole in components_of(target).items():
        for _, path, module in parts_of(component, whole):
            name = f"{component}.{path}" if path else component
            if is_compiled(module):
                raise ValueError(f"{name} is compiled: its modules cannot be timed one by one")
            call = found[name] = NetworkCall(name, module)
            hooks.append(module.register_forward_pre_hook(_keeper(call), with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(call: NetworkCall) -> Any:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.args, call.kwargs = args, dict(kwargs)
        call.times += 1

    return keep
