"""Where a pipeline's time goes: every network by module, timed, counted and set beside a roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .counting import count
from .recording import NetworkCall
from .roofline import Device
from .stopwatch import Clock, Span, Stopwatch, wall_clock, watch_cost
from .tally import Cost, ModuleCost


@dataclass(frozen=True)
class Row:
    """One module of a network, over one call of the network.

    Attributes:
        name: as in the pipeline: `unet.down_blocks.0`.
        kind: its class.
        level: 0 for the whole network, 1 for its blocks, …
        runs: how often it ran.
        seconds: **inclusive** time: with all that is inside it; median over the repeats.
        seconds_iqr: distance between the quartiles of that.
        own_seconds: **exclusive** time: without the rows below it; median. Over all rows of a
            network these add up to its time.
        cost: work and traffic, inclusive.
        own: the part of `cost` that is in no row below it.
        split: whether there are rows below it.
    """

    name: str
    kind: str
    level: int
    runs: int
    seconds: float
    seconds_iqr: float
    own_seconds: float
    cost: ModuleCost
    own: ModuleCost
    split: bool

    @property
    def intensity(self) -> float:
        return intensity(self.cost)


@dataclass(frozen=True)
class Profile:
    """One network of a pipeline; see `profile`.

    Attributes:
        name: `unet`, `text_encoder`, `vae.decoder`, …
        calls: how often the pipeline calls it to make a picture.
        seconds: one call that nothing watches: median over the repeats.
        seconds_iqr: distance between the quartiles of that.
        rows: its modules, in the order in which they first ran: each before those inside it.
        cost: of one call.
        repeats: how many calls were timed, each way.
    """

    name: str
    calls: int
    seconds: float
    seconds_iqr: float
    rows: list[Row]
    cost: Cost
    repeats: int

    @property
    def own_sum(self) -> float:
        """Exclusive times of all rows: `seconds`, but for what the watching takes."""
        return sum(row.own_seconds for row in self.rows)


@dataclass(frozen=True)
class Target:
    """A module's own part in making a picture, and what the roofline says of it.

    `network` is the name of its `Profile`, `seconds` exclusive time over all calls, `roof_seconds`
    the least that the device could take for that work, `cost` that work.
    """

    name: str
    network: str
    seconds: float
    roof_seconds: float
    cost: ModuleCost

    @property
    def times_roof(self) -> float:
        """How many times the roofline's least: below 1 where the data came from a cache."""
        return self.seconds / self.roof_seconds if self.roof_seconds else float("inf")


def intensity(cost: ModuleCost) -> float:
    """Arithmetic intensity: FLOPs (two for each MAC of the convention `all`) per byte moved."""
    return 2 * cost.macs_all / cost.bytes if cost.bytes else 0.0


def modules_to(root: nn.Module, depth: int) -> dict[str, tuple[int, nn.Module]]:
    """Name → (level, module) of `root` ("", level 0) and all down to level `depth`.

    Lists of modules are no level of their own: `down_blocks.0` is at 1, `down_blocks.0.resnets.1`
    at 2. A module that is reached by two names keeps the first.
    """
    found: dict[str, tuple[int, nn.Module]] = {}
    seen: set[int] = set()

    def walk(module: nn.Module, path: str, level: int) -> None:
        if level > depth or id(module) in seen:
            return
        seen.add(id(module))
        lists = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if not lists:
            found[path] = level, module
        for name, child in module.named_children():
            inner = isinstance(child, nn.ModuleList | nn.ModuleDict)
            walk(child, f"{path}.{name}".lstrip("."), level if inner else level + 1)

    walk(root, "", 0)
    return found


def profile(
    call: NetworkCall,
    *,
    depth: int = 2,
    repeats: int = 7,
    warmup: int = 2,
    clock: Clock | None = None,
) -> Profile:
    """Time and count one call of a network, by module down to level `depth`.

    After `warmup` calls, half of the calls that nothing watches come before those watched by a
    `Stopwatch`, half after them; work is counted by `count`, in a call of its own.

    Raises:
        ValueError: a depth below 0, fewer than one repeat, or less than no warm-up.
    """
    for name, number, least in (
        ("depth", depth, 0),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
    ):
        if number < least:
            raise ValueError(f"{name}={number}: must be at least {least}")
    if clock is None:
        tensor = next(call.module.parameters(), None)
        clock = wall_clock("cpu" if tensor is None else tensor.device)
    levels = modules_to(call.module, depth)
    watched = {name: module for name, (_, module) in levels.items()}
    watch = Stopwatch(watched, clock, watch_cost(clock))
    with torch.no_grad():
        for _ in range(warmup):
            call()
        # Half of the unwatched calls before, half after, so that drift hits both kinds alike.
        plain = [_timed(call, clock) for _ in range(repeats - repeats // 2)]
        with watch:
            laps = [_lap(call, watch) for _ in range(repeats + 1)][1:]  # the first fills caches
        call()
        plain += [_timed(call, clock) for _ in range(repeats // 2)]
        cost = count(call.module, *call.args, **call.kwargs)
    return profile_of(call.name, call.times, plain, laps, levels, cost)


def profile_of(
    network: str,
    calls: int,
    plain: Sequence[float],
    laps: Sequence[Mapping[str, Span]],
    levels: Mapping[str, tuple[int, nn.Module]],
    cost: Cost,
) -> Profile:
    """A profile from what was measured.

    Args:
        network, calls: its name, and how often a picture takes it.
        plain: seconds of calls that nothing watched.
        laps: times by module of watched ones, all of the same modules.
        levels: of the network, by `modules_to`.
        cost: of a call.
    """
    names = list(laps[0])
    own = _own_costs(cost, names)
    parents = {_parent(name, names) for name in names}
    rows = []
    for name in names:
        level, module = levels[name]
        seconds, iqr = median_iqr([lap[name].inclusive for lap in laps])
        rows.append(
            Row(
                name=f"{network}.{name}".rstrip("."),
                kind=type(module).__name__,
                level=level,
                runs=laps[0][name].runs,
                seconds=seconds,
                seconds_iqr=iqr,
                own_seconds=median_iqr([lap[name].exclusive for lap in laps])[0],
                cost=cost.under(name) if name else cost.total,
                own=own[name],
                split=name in parents,
            )
        )
    return Profile(network, calls, *median_iqr(plain), rows, cost, len(plain))


def _timed(call: NetworkCall, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def _lap(call: NetworkCall, watch: Stopwatch) -> dict[str, Span]:
    call()
    return watch.lap()


def targets(profiles: Sequence[Profile], device: Device) -> list[Target]:
    """The own parts of all rows, which together are the whole of making a picture."""
    found = []
    for each in profiles:
        for row in each.rows:
            roof = device.seconds(2 * row.own.macs_all, row.own.bytes)
            name = f"{row.name} (own)" if row.split else row.name
            found.append(
                Target(
                    name,
                    each.name,
                    row.own_seconds * each.calls,
                    roof * each.calls,
                    row.own * each.calls,
                )
            )
    return found


def least_seconds(profiles: Sequence[Profile], device: Device, bits: int) -> float:
    """The least time for a picture on a device: the roofline's time of every row, one by one.

    Args:
        bits: of the numbers that were counted; bytes are scaled to the device's own width.
    """
    scale = device.bits / bits
    return sum(
        device.seconds(2 * target.cost.macs_all, target.cost.bytes * scale)
        for target in targets(profiles, device)
    )


def median_iqr(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the distance between the quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(high - low)


def _parent(name: str, names: Sequence[str]) -> str | None:
    """The longest of the other names that `name` lies below."""
    above = [other for other in names if other != name and _holds(other, name)]
    return max(above, key=len, default=None)


def _holds(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(outer + ".")


def _own_costs(cost: Cost, names: Sequence[str]) -> Mapping[str, ModuleCost]:
    """Each module's counted work, given to the innermost of `names` that holds it."""
    found = {name: ModuleCost() for name in names}
    for counted, part in cost.modules.items():
        home = max((name for name in names if _holds(name, counted)), key=len)
        found[home] += part
    return found
