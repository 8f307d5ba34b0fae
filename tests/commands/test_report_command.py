import pytest

from edgegen.commands.report import main
from edgegen.runs.record import Run, is_finished


def made(folder, steps, error, finish=True):
    run = Run(folder, config={"steps": steps, "scheduler": "DDIM"}, command="evaluate")
    run.log({"quality/ode_rmse": error, "quality/ode_rmse_lo": error - 0.1})
    run.log({"quality/ode_rmse_hi": error + 0.1, "cost/tflops_all": steps * 0.5})
    if finish:
        run.finish()


def test_a_report_of_a_sweep(tmp_path, capsys):
    for steps, error in ((4, 0.9), (8, 0.5), (16, 0.6)):
        made(tmp_path / "sweep" / "cells" / f"r{steps}", steps, error, finish=steps < 16)
    main([f"runs={tmp_path / 'sweep'}", f"output_dir={tmp_path / 'report'}", "title=Mine"])
    text = (tmp_path / "report" / "report.html").read_text()
    assert "<title>Mine</title>" in text
    assert text.count("data:image/png;base64,") == 1  # the plot
    assert 'alt="quality/ode_rmse against cost/tflops_all"' in text
    assert "0.50 [0.40, 0.60]" in text
    assert "0.60 [0.50" not in text
    assert "shows 3 runs, 2 of them finished" in capsys.readouterr().out
    assert is_finished(tmp_path / "report")


def test_a_report_of_one_run(tmp_path):
    made(tmp_path / "one", 4, 0.9)
    main(
        [
            f"runs={tmp_path / 'one'}",
            f"output_dir={tmp_path / 'report'}",
            "scores=[cost/tflops_all]",
        ]
    )
    text = (tmp_path / "report" / "report.html").read_text()
    assert "<h1>evaluate</h1>" in text
    assert '<details class="run" open>' in text
    assert "data:image/png" not in text


def test_nothing_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"runs={tmp_path / 'no'}", f"output_dir={tmp_path / 'report'}"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "no run (a folder with run.json) there" in line
    assert not (tmp_path / "report").exists()
