"""Profiles of networks that a method lets run in several ways, taken while pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import Any

import torch
from torch import nn

from .counting import Counter, is_compiled
from .modes import current_mode
from .profiling import Profile, modules_to, profile_of
from .stopwatch import Clock, Span, Stopwatch, wall_clock, watch_cost
from .tally import Cost
from .tracker import components_of, parts_of

Key = tuple[str, Hashable]
"""Name of a network, and what its `cost_mode`s say."""


def profile_run(
    target: Any, run: Callable[[], object], *, depth: int = 2, repeats: int = 7, warmup: int = 0
) -> list[Profile]:
    """Profile each network of `target` in each mode in which `run()` calls it.

    A pass that skips blocks cannot be made again by itself, so whole runs are made: `warmup` of
    them, one that counts, and then unwatched and watched ones in turn, until the rarest mode of
    the network that is called most has been timed `repeats` times each way.

    Args:
        target: as for `CostTracker`.
        run: draws a picture.
        depth: levels below a network, as for `profile`.

    Returns profiles by the name of the network; its second mode is `unet_2`, and so on.

    Raises:
        ValueError: nothing to profile in the target, or a network that is compiled.
    """
    networks = _networks(target)
    clock = wall_clock(next(p.device for each in networks.values() for p in each.parameters()))
    with torch.no_grad():
        for _ in range(warmup):
            run()
        costs, times = _count(networks, run)
        most = max(networks, key=lambda name: sum(n for key, n in times.items() if key[0] == name))
        rounds = ceil(repeats / min(n for key, n in times.items() if key[0] == most))
        plain: dict[Key, list[float]] = {key: [] for key in times}
        laps: dict[Key, list[dict[str, Span]]] = {key: [] for key in times}
        for _ in range(rounds):
            _time(networks, run, clock, plain)
            _watch(networks, run, clock, depth, laps)
    found = []
    for (name, mode), number in times.items():
        key = (name, mode)
        modes = [other for other in times if other[0] == name]
        shown = name if key == modes[0] else f"{name}_{modes.index(key) + 1}"
        levels = modules_to(networks[name], depth)
        found.append(profile_of(shown, number, plain[key], laps[key], levels, costs[key]))
    return found


def _networks(target: Any) -> dict[str, nn.Module]:
    found = {}
    for component, whole in components_of(target).items():
        for _, path, module in parts_of(component, whole):
            name = f"{component}.{path}" if path else component
            if is_compiled(module):
                raise ValueError(f"{name} is compiled: its modules cannot be timed one by one")
            found[name] = module
    return found


def _count(
    networks: dict[str, nn.Module], run: Callable[[], object]
) -> tuple[dict[Key, Cost], dict[Key, int]]:
    """What the first call in each mode costs, and how many calls there are."""
    counters: dict[Key, Counter] = {}
    times: dict[Key, int] = {}

    def before(key: Key) -> None:
        times[key] = times.get(key, 0) + 1
        if times[key] == 1:
            counters[key] = Counter(networks[key[0]])
            counters[key].__enter__()

    def after(key: Key) -> None:
        if times[key] == 1:
            counters[key].__exit__(None, None, None)

    with _around_calls(networks, before, after):
        run()
    return {key: counter.cost for key, counter in counters.items()}, times


def _time(
    networks: dict[str, nn.Module],
    run: Callable[[], object],
    clock: Clock,
    found: dict[Key, list[float]],
) -> None:
    start = 0.0

    def before(key: Key) -> None:
        nonlocal start
        start = clock()

    with _around_calls(networks, before, lambda key: found[key].append(clock() - start)):
        run()


def _watch(
    networks: dict[str, nn.Module],
    run: Callable[[], object],
    clock: Clock,
    depth: int,
    found: dict[Key, list[dict[str, Span]]],
) -> None:
    with ExitStack() as stack:
        watches = {}
        for name, network in networks.items():
            watched = {path: module for path, (_, module) in modules_to(network, depth).items()}
            watches[name] = stack.enter_context(Stopwatch(watched, clock, watch_cost(clock)))
        with _around_calls(
            networks, lambda key: None, lambda key: found[key].append(watches[key[0]].lap())
        ):
            run()


@contextmanager
def _around_calls(
    networks: dict[str, nn.Module], before: Callable[[Key], None], after: Callable[[Key], None]
) -> Iterator[None]:
    """While open, `before` and `after` are called around every call of a network."""
    keys: list[Key] = []

    def begin(name: str, module: nn.Module) -> None:
        keys.append((name, current_mode(module)))
        before(keys[-1])

    with ExitStack() as stack:
        for name, module in networks.items():
            first = module.register_forward_pre_hook(
                lambda module, _, name=name: begin(name, module)
            )
            last = module.register_forward_hook(
                lambda *_: after(keys.pop()), always_call=True, prepend=True
            )
            stack.callback(first.remove)
            stack.callback(last.remove)
        yield
