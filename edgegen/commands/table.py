"""`python scripts/table.py runs=… rows=… scores=[…]`: a table of finished runs."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig

from ..runs.atomic import write_atomic
from ..runs.finished import finished_runs, from_csv, results, run_folders, to_csv
from ..runs.record import Run
from ..runs.tables import Better, make_table
from ._main import command
from ._numbers import flag

_FORMS = ("markdown", "latex", "csv")


@command("table")
def main(cfg: DictConfig, run: Run) -> None:
    """Write `results.csv` (a line a run), `table.md` and `table.tex`, and print one of them."""
    rows, cols = names(cfg, "rows", least=1), names(cfg, "cols")
    metrics = names(cfg, "scores", least=1)
    if cfg.print not in _FORMS:
        raise ValueError(f"print={cfg.print}: must be one of {', '.join(_FORMS)}")
    better, intervals, mix = ways(cfg), flag(cfg, "intervals"), flag(cfg, "mix")
    folders = run_folders(names(cfg, "runs", least=1))
    found = finished_runs(folders, mix=mix)
    text = to_csv(results(found, [*rows, *cols], metrics))
    # Read back, so that the table is the one that this CSV gives again.
    table = make_table(from_csv(text), rows, cols, metrics, better)
    forms = {
        "csv": text,
        "markdown": table.markdown(intervals),
        "latex": table.latex(intervals),
    }
    for form, file in (("csv", "results.csv"), ("markdown", "table.md"), ("latex", "table.tex")):
        write_atomic(run.dir / file, forms[form])
    left_out = len(folders) - len(found)
    run.log({"run/runs": len(found), "run/runs_unfinished": left_out})
    print(forms[cfg.print], end="")
    if left_out:
        print(f"{left_out} of {len(folders)} runs left out: not finished")


def names(cfg: DictConfig, key: str, least: int = 0) -> list[str]:
    """The texts that an option names: one, or a list of them.

    Raises ValueError where they are fewer than `least`, or no texts.
    """
    value: Any = cfg[key]
    given = list(value) if isinstance(value, ListConfig) else [] if value is None else [value]
    if len(given) < least:
        raise ValueError(f"{key} is required: give {key}=...")
    if bad := [each for each in given if not isinstance(each, str)]:
        raise ValueError(f"{key}={bad[0]}: must be a text, or a list of texts")
    return given


def ways(cfg: DictConfig) -> dict[str, Better]:
    """Which way metrics are better, as the options `lower` and `higher` say."""
    lower, higher = names(cfg, "lower"), names(cfg, "higher")
    if both := sorted(set(lower) & set(higher)):
        raise ValueError(f"{both[0]} is named in lower and in higher")
    found: dict[str, Better] = {name: "lower" for name in lower}
    return found | {name: "higher" for name in higher}
