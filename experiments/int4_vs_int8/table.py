"""Tables and figure of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
SPEED, ENERGY = 1.9, 1.6  # the claim: 90 % more performance, 60 % better energy efficiency


def gains(rows: Rows, form: str) -> list[tuple[str, str, float, float]]:
    """(workload, device, times faster than W8A8, times less energy) of a form."""
    known = {(row["workload"], row["device"], row["form"]): row for row in rows}
    found = []
    for (workload, device, which), row in known.items():
        if which == form:
            base = known[workload, device, "W8A8"]
            found.append(
                (
                    workload,
                    device,
                    base["seconds"] / row["seconds"],
                    base["joules"] / row["joules"],
                )
            )
    return found


def table(rows: Rows) -> str:
    """What is run, then what 4 bits give over 8."""
    lines = [
        "| run once | GMACs | form | weights, MB | moved, MB | estimated energy, mJ |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    first = rows[0]["device"]
    for row in (row for row in rows if row["device"] == first):
        lines.append(
            f"| {row['workload']} | {row['gmacs']:,.1f} | {row['form']} | {row['weights_mb']:,.1f} "
            f"| {row['mb']:,.1f} | {1e3 * row['joules']:,.1f} |"
        )
    for form, what in (
        ("W4A8", "4 bit weights, products at 8 bit"),
        ("W4A4", "all at 4 bit, products twice as fast"),
    ):
        lines += [
            "",
            f"# {form} over W8A8: {what}",
            "",
            "| run once | device | times faster | 90 % faster | times less energy | 60 % better |",
            "| --- | --- | ---: | --- | ---: | --- |",
        ]
        for workload, device, faster, less in gains(rows, form):
            lines.append(
                f"| {workload} | {device} | {faster:.2f} | {reached(faster, SPEED)} "
                f"| {less:.2f} | {reached(less, ENERGY)} |"
            )
    return "\n".join([*lines, ""])


def reached(value: float, claim: float) -> str:
    """Within the digits that the claim is given in."""
    return "yes" if round(value, 1) >= claim else "no"


def figures(rows: Rows) -> dict[str, Figure]:
    """Bars: how many times faster 4 bits are, by workload and device."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, form in zip(axes, ("W4A8", "W4A4"), strict=True):
        made = gains(rows, form)
        workloads = list(dict.fromkeys(workload for workload, *_ in made))
        devices = list(dict.fromkeys(device for _, device, *_ in made))
        for number, device in enumerate(devices):
            places = [w + (number - len(devices) / 2 + 0.5) * 0.15 for w in range(len(workloads))]
            heights = [faster for _, named, faster, _ in made if named == device]
            axis.bar(places, heights, width=0.15, label=device.partition(" (")[0])
        axis.axhline(SPEED, color="black", ls="--", lw=1)
        axis.axhline(1, color="grey", lw=0.8)
        names = [workload.replace(", ", ",\n").replace(" of ", " of\n") for workload in workloads]
        axis.set_xticks(range(len(workloads)), names, fontsize=7)
        axis.set_title(f"{form} against W8A8", fontsize=9)
        axis.set_ylim(0, 2.6)
    axes[0].set_ylabel("times faster at best")
    axes[1].legend(fontsize=6, ncols=2, loc="upper left")
    axes[0].text(3.45, SPEED + 0.03, "the claim", fontsize=7, ha="right")
    return {"speed.png": figure}
