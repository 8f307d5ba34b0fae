"""A run's cost by part, as numbers and as a table to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .tally import Cost, ModuleCost

# Names under which diffusers pipelines keep the network that runs once a denoising step.
DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Part:
    """One network of a pipeline over a whole run.

    Attributes:
        total: all its calls together.
        calls: how many there were.
        call: its costliest call.
        batch: samples in that call: pictures times guidance branches, or texts.
    """

    total: Cost
    calls: int
    call: Cost
    batch: int = 1

    def __mul__(self, times: int) -> Part:
        return Part(self.total * times, self.calls * times, self.call, self.batch)


class Summary(dict[str, Part]):
    """Part name (`text_encoder`, `unet`, `vae.decoder`, …) → its cost over the run.

    Two conventions, never mixed: `all` counts convolutions, linears and attention products,
    `conv+linear` leaves the attention products out. 1 MAC = 2 FLOPs.
    """

    def __init__(self, parts: Mapping[str, Part], images: int = 1) -> None:
        """`images`: pictures (or clips) that the run made; metrics are given for one."""
        super().__init__(parts)
        if images < 1:
            raise ValueError(f"images={images}: must be at least 1")
        self.images = images

    @property
    def denoiser(self) -> Part | None:
        return next((self[name] for name in DENOISERS if name in self), None)

    @property
    def total(self) -> ModuleCost:
        return sum((part.total.total for part in self.values()), ModuleCost())

    @property
    def uncounted(self) -> Counter[str]:
        return sum((part.total.uncounted for part in self.values()), Counter())

    def metrics(self) -> dict[str, float]:
        """Flat numbers for `metrics.json`.

        `cost/params`, `cost/stored_mb`, `cost/gmacs_all`, `cost/gmacs_conv_linear` (one call, one
        sample), `cost/tflops_*`, `cost/tbops`, `cost/gbytes` and `cost/unet_calls` (the whole run,
        for one picture, all guidance branches) are the denoiser's and absent without one.
        `cost/PART_params` and `cost/PART_tflops_*` are there for every part, `cost/total_*` for
        all together. `cost/uncounted_ops` is the number of calls left out.
        """
        found: dict[str, float] = {}
        if self.denoiser is not None:
            part = self.denoiser
            found = {
                "cost/params": part.call.params,
                "cost/stored_mb": part.call.stored_bytes / 1e6,
                "cost/gmacs_all": part.call.macs_all / part.batch / 1e9,
                "cost/gmacs_conv_linear": part.call.macs_conv_linear / part.batch / 1e9,
                **self._run("", part.total.total),
                "cost/tbops": part.total.bops / self.images / 1e12,
                "cost/gbytes": part.total.bytes / self.images / 1e9,
                "cost/unet_calls": part.calls,
            }
        for name, part in self.items():
            slug = name.replace(".", "_").lower()
            found[f"cost/{slug}_params"] = part.call.params
            found |= self._run(f"{slug}_", part.total.total)
        found["cost/total_params"] = sum(part.call.params for part in self.values())
        found |= self._run("total_", self.total)
        found["cost/uncounted_ops"] = self.uncounted.total()
        return found

    def _run(self, prefix: str, cost: ModuleCost) -> dict[str, float]:
        return {
            f"cost/{prefix}tflops_all": 2 * cost.macs_all / self.images / 1e12,
            f"cost/{prefix}tflops_conv_linear": 2 * cost.macs_conv_linear / self.images / 1e12,
        }

    def table(self) -> str:
        """Cost by part, over the whole run; then what could not be counted."""
        rows = [
            (
                name,
                f"{part.total.params:,}",
                str(part.calls),
                *_work(part.total.total),
                f"{part.total.bops / 1e12:.3f}",
                f"{part.total.bytes / 1e9:.3f}",
            )
            for name, part in self.items()
        ]
        work = self.total
        rows.append(
            (
                "total",
                f"{sum(part.total.params for part in self.values()):,}",
                "",
                *_work(work),
                f"{work.bops / 1e12:.3f}",
                f"{work.bytes / 1e9:.3f}",
            )
        )
        heads = ("part", "params", "calls", "GMACs all", "conv+linear", "TBOPs", "GB moved")
        return "\n".join([text_table(heads, rows), *self._remarks()])

    def block_table(self, name: str) -> str:
        """One call of part `name`, one sample, by block, in GMACs of both conventions."""
        part = self[name]
        rows = [
            (block or "(itself)", *_work(cost, part.batch))
            for block, cost in part.call.blocks().items()
            if cost.macs_all
        ]
        rows.append(("total", *_work(part.call.total, part.batch)))
        return text_table((f"{name} block", "GMACs all", "conv+linear"), rows)

    def _remarks(self) -> list[str]:
        return [uncounted_remark(self.uncounted)] if self.uncounted else []


def uncounted_remark(uncounted: Mapping[str, int]) -> str:
    """A line that names operators without a formula, and how often each ran."""
    named = ", ".join(f"{op} ({n}×)" for op, n in Counter(uncounted).most_common())
    return f"Not counted, for want of a formula: {named}"


def _work(cost: ModuleCost, batch: int = 1) -> tuple[str, str]:
    return f"{cost.macs_all / batch / 1e9:,.3f}", f"{cost.macs_conv_linear / batch / 1e9:,.3f}"


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: the first column to the left, numbers to the right, total set off."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (cells[0].ljust(widths[0]),), *zip(cells[1:], widths[1:], strict=True)
        return "  ".join([first[0], *(cell.rjust(width) for cell, width in rest)]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(heads), rule, *map(line, rows[:-1]), rule, line(rows[-1])])
