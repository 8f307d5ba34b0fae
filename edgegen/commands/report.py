"""`python scripts/report.py runs=…`: one HTML page for a run, a sweep or an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from ..runs.collection_report import Shown, differing, flat, write_collection_report
from ..runs.finished import Row, plain, run_folders
from ..runs.pareto import picture_bytes
from ..runs.record import Run
from ._main import command
from ._results import front_plot
from .table import names


@command("report")
def main(cfg: DictConfig, run: Run) -> None:
    """Write `report.html` with everything inside: table, plot, pictures, videos, records."""
    patterns = names(cfg, "runs", least=1)
    shown = [Shown.read(folder) for folder in run_folders(patterns)]
    metrics = names(cfg, "scores") or None
    settings = names(cfg, "settings") or None
    plots = _plot(shown, cfg.x, cfg.y)
    path = write_collection_report(
        run.dir / "report.html",
        shown,
        title=cfg.title or _title(shown),
        lead=f"From {', '.join(patterns)}.",
        settings=settings,
        metrics=metrics,
        plots=plots,
    )
    finished = sum(each.finished for each in shown)
    run.log({"run/runs": finished, "run/runs_unfinished": len(shown) - finished})
    print(f"{path} shows {len(shown)} runs, {finished} of them finished")


def _title(shown: Sequence[Shown]) -> str:
    commands = list(dict.fromkeys(str(each.record.get("command") or "run") for each in shown))
    return f"{len(shown)} × {', '.join(commands)}" if len(shown) > 1 else f"{commands[0]}"


def _plot(shown: Sequence[Shown], x: str, y: str) -> list[tuple[str, bytes]]:
    keys = differing(shown)
    rows: list[Row] = []
    for each in shown:
        settings = flat(each.config)
        if each.finished and each.metrics.get(x) is not None and each.metrics.get(y) is not None:
            rows.append({key: plain(settings.get(key)) for key in keys} | dict(each.metrics))
    if len(rows) < 2:
        return []
    figure = front_plot(rows, keys, {x: "minimize", y: "minimize"})
    return [(f"{y} against {x}", picture_bytes(figure))]
