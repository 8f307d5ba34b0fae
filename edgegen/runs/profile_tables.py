"""The tables of a profile: what to attack, all modules, other devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cost.profiling import Profile, Row, Target, intensity, least_seconds, targets
from ..cost.roofline import Device
from ..cost.summary import text_table, uncounted_remark
from .page import metric, percent

_LEAST_SHARE = 0.01  # of the time: what takes less is not worth attacking, however slow it is


@dataclass(frozen=True)
class Analysis:
    """All that the report tells.

    Attributes:
        model: its name.
        profiles: of its networks.
        machine: as measured.
        devices: to compare with.
        bits: width of the numbers that were counted.
        changes: module → relative change from the second UNet evaluation on; {} where not known.
        why_no_changes: the reason, where not known.
        warnings: what a reader must know first.
    """

    model: str
    profiles: Sequence[Profile]
    machine: Device
    devices: Sequence[Device]
    bits: int = 32
    changes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    why_no_changes: str = ""
    warnings: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Time of all networks for one picture."""
        return sum(each.seconds * each.calls for each in self.profiles)

    @property
    def targets(self) -> list[Target]:
        return targets(self.profiles, self.machine)

    def slowest(self, number: int = 10) -> list[Target]:
        """What takes the most time by itself, over all calls for a picture."""
        return sorted(self.targets, key=lambda each: -each.seconds)[:number]

    def farthest(self, number: int = 10) -> list[Target]:
        """What is the farthest above the roofline, as a multiple, of what takes 1 % at least."""
        least = _LEAST_SHARE * sum(each.seconds for each in self.targets)
        known = [each for each in self.targets if each.seconds >= least and each.roof_seconds]
        return sorted(known, key=lambda each: -each.times_roof)[:number]


def metrics_of(analysis: Analysis) -> dict[str, float]:
    """Flat numbers for `metrics.json`.

    `machine/…` is what was measured of it. `profile/seconds_per_image` adds up the networks, and
    `profile/roof_seconds_per_image` what the roofline says it could be. Of each network, over one
    call with its whole batch: `profile/NAME_seconds`, `_seconds_iqr`, `_gmacs_all`,
    `_gmacs_conv_linear`, `_gbytes`, `_flops_per_byte`; `_calls` for a picture; `_own_sum`, the sum
    of all exclusive times as a multiple of an unwatched call. `step_change/MODULE` is the mean
    relative change of the UNet's output and those of its blocks.
    """
    machine = analysis.machine
    found: dict[str, float] = {
        "machine/gflops_per_second": machine.flops / 1e9,
        "machine/gbytes_per_second": machine.bandwidth / 1e9,
        "profile/seconds_per_image": analysis.seconds,
        "profile/roof_seconds_per_image": least_seconds(analysis.profiles, machine, analysis.bits),
    }
    if machine.cache_bandwidth:
        found["machine/cache_gbytes_per_second"] = machine.cache_bandwidth / 1e9
    for each in analysis.profiles:
        slug = "profile/" + each.name.replace(".", "_").lower()
        work = each.cost.total
        found |= {
            f"{slug}_seconds": each.seconds,
            f"{slug}_seconds_iqr": each.seconds_iqr,
            f"{slug}_calls": each.calls,
            f"{slug}_gmacs_all": work.macs_all / 1e9,
            f"{slug}_gmacs_conv_linear": work.macs_conv_linear / 1e9,
            f"{slug}_gbytes": work.bytes / 1e9,
            f"{slug}_flops_per_byte": intensity(work),
            f"{slug}_own_sum": each.own_sum / each.seconds,
        }
    blocks = [row.name for each in analysis.profiles for row in each.rows if row.level <= 1]
    for name in blocks:
        if change := analysis.changes.get(name):
            found[f"step_change/{name.lower()}"] = sum(change) / len(change)
    return found


def attack_text(analysis: Analysis) -> str:
    """The two tables of what to attack, as plain text."""
    whole = sum(each.seconds for each in analysis.targets)
    parts = []
    for table in (_slowest(analysis), _farthest(analysis)):
        texts = [[str(cell["text"]) for cell in row] for row in table["rows"]]
        rows = [(name, time, share, times) for name, time, share, _, times, *_ in texts]
        heads = (table["title"].lower(), "time", "share", "× roofline")
        parts.append(text_table(heads, [*rows, ("all modules", metric(whole, "s"), "", "")]))
    machine = analysis.machine
    parts.append(
        f"{machine.name}: peak {metric(machine.flops, 'FLOP/s')}, memory "
        f"{metric(machine.bandwidth, 'B/s')}, ridge {machine.ridge:.1f} FLOPs/byte"
    )
    return "\n\n".join(parts)


def html_tables(analysis: Analysis) -> list[dict[str, Any]]:
    """The tables of the report: `id`, `title`, `heads`, `rows` of cells, `notes`."""
    return [_slowest(analysis), _farthest(analysis), _modules(analysis), _devices(analysis)]


def module_row(analysis: Analysis, profile: Profile, row: Row) -> dict[str, Any]:
    """A module as a line of `profile.csv`; see `table_csv`."""
    change = analysis.changes.get(row.name)
    whole = profile.rows[0]
    return {
        "network": profile.name,
        "module": row.name,
        "class": row.kind,
        "level": row.level,
        "calls_per_image": profile.calls,
        "runs_per_call": row.runs,
        "seconds": row.seconds,
        "seconds_iqr": row.seconds_iqr,
        "own_seconds": row.own_seconds,
        "time_share": row.seconds / whole.seconds,
        "macs_all": row.cost.macs_all,
        "macs_conv_linear": row.cost.macs_conv_linear,
        "macs_share": _share(row.cost.macs_all, whole.cost.macs_all),
        "bytes": row.cost.bytes,
        "flops_per_byte": row.intensity,
        "own_macs_all": row.own.macs_all,
        "own_bytes": row.own.bytes,
        "roof_seconds": _roof(analysis, row),
        "mean_step_change": sum(change) / len(change) if change else None,
    }


def _roof(analysis: Analysis, row: Row) -> float:
    return analysis.machine.seconds(2 * row.cost.macs_all, row.cost.bytes)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _cell(value: float | str | None, text: str | None = None, level: int = 0) -> dict[str, Any]:
    shown = "" if value is None else str(value) if text is None else text
    return {"value": "" if value is None else value, "text": shown, "level": level}


def _number(value: float, unit: str = "") -> dict[str, Any]:
    return _cell(value, metric(value, unit) if value else "0")


def _ratio(value: float | None, digits: int = 1) -> dict[str, Any]:
    return _cell(value, "" if value is None else f"{value:,.{digits}f}")


_TARGET_HEADS = ("Module", "Time", "Share", "Roofline's least", "Times that", "MACs", "FLOPs/byte")


def _slowest(analysis: Analysis) -> dict[str, Any]:
    note = (
        "Exclusive time over all calls for one picture; “(own)” is what a module does itself, "
        "beside the modules in it that have rows of their own. The roofline's least is what this "
        "machine would take at its peak or its bandwidth, whichever is longer."
    )
    found = analysis.slowest()
    return _targets_table("slowest", "Ten that take the most time", analysis, found, [note])


def _farthest(analysis: Analysis) -> dict[str, Any]:
    note = (
        "Of those that take 1 % of the time or more: how many times longer than the roofline's "
        "least. Small work in many operators, strided access and kernels that fit a shape badly "
        "end up here; below 1 the data came from a cache."
    )
    title = "Ten farthest above the roofline"
    return _targets_table("farthest", title, analysis, analysis.farthest(), [note])


def _targets_table(
    name: str, title: str, analysis: Analysis, found: Sequence[Target], notes: Sequence[str]
) -> dict[str, Any]:
    whole = sum(each.seconds for each in analysis.targets)
    rows = [
        [
            _cell(each.name),
            _number(each.seconds, "s"),
            _cell(each.seconds / whole, percent(each.seconds / whole)),
            _number(each.roof_seconds, "s"),
            _ratio(each.times_roof if each.roof_seconds else None),
            _number(each.cost.macs_all),
            _ratio(intensity(each.cost)),
        ]
        for each in found
    ]
    return {"id": name, "title": title, "heads": _TARGET_HEADS, "rows": rows, "notes": notes}


def _modules(analysis: Analysis) -> dict[str, Any]:
    rows = []
    for each in analysis.profiles:
        whole = each.rows[0]
        for row in each.rows:
            entry = module_row(analysis, each, row)
            share = _share(row.cost.macs_all, whole.cost.macs_all)
            rows.append(
                [
                    _cell(row.name, level=row.level),
                    _cell(row.kind),
                    _number(row.seconds, "s"),
                    _number(row.seconds_iqr, "s"),
                    _number(row.own_seconds, "s"),
                    _cell(entry["time_share"], percent(entry["time_share"])),
                    _number(row.cost.macs_all),
                    _number(row.cost.macs_conv_linear),
                    _cell(share, percent(share)),
                    _number(row.cost.bytes, "B"),
                    _ratio(row.intensity),
                    _ratio(row.seconds / entry["roof_seconds"] if entry["roof_seconds"] else None),
                    _ratio(entry["mean_step_change"], 3),
                ]
            )
    heads = (
        *("Module", "Class", "Time, inclusive", "IQR", "Time, exclusive", "Share of time"),
        *("MACs, all", "MACs, conv + linear", "Share of MACs", "Bytes moved", "FLOPs/byte"),
        *("Times the roofline", "Change a step"),
    )
    notes = [
        "One call of the network, with its whole batch. Inclusive: with all modules inside; "
        "exclusive: without those that have rows of their own. Medians; IQR is the distance "
        "between the quartiles of the inclusive time. Shares are of the module's network. MACs, "
        "bytes and intensity are inclusive. Click a heading to sort.",
        *(_check(each) for each in analysis.profiles),
    ]
    uncounted = sum((each.cost.uncounted for each in analysis.profiles), start=Counter[str]())
    if uncounted:
        notes.append(uncounted_remark(uncounted) + ".")
    return {"id": "modules", "title": "All modules", "heads": heads, "rows": rows, "notes": notes}


def _check(profile: Profile) -> str:
    ratio = profile.own_sum / profile.seconds
    return (
        f"{profile.name}: one call takes {metric(profile.seconds, 's')} when nothing watches it "
        f"({profile.repeats} repeats, IQR {metric(profile.seconds_iqr, 's')}); the exclusive "
        f"times add up to {100 * ratio:.1f} % of that."
    )


def _devices(analysis: Analysis) -> dict[str, Any]:
    rows = []
    for device in (analysis.machine, *analysis.devices):
        least = least_seconds(analysis.profiles, device, analysis.bits)
        rows.append(
            [
                _cell(device.name),
                _number(device.flops, "FLOP/s"),
                _number(device.bandwidth, "B/s"),
                _ratio(device.ridge),
                _number(least, "s"),
                _cell("measured" if device.measured else "estimate"),
            ]
        )
    heads = (
        "Device",
        "Peak",
        "Memory",
        "Ridge, FLOPs/byte",
        "A picture, at least",
        "Figures",
        "Source",
    )
    notes = [
        "The least time for all networks of one picture: the roofline's time of each module, added "
        "up, at the device's own number width. No device runs at its roof, and none of these was "
        "run; the order of magnitude is what counts, and which side of the ridge a model is on.",
        "Sources. "
        + " · ".join(
            f"{device.name}: {device.source}" for device in (analysis.machine, *analysis.devices)
        ),
    ]
    title = "Other devices, estimated"
    return {"id": "devices", "title": title, "heads": heads, "rows": rows, "notes": notes}
