import pytest
import yaml

from edgegen.runs.experiment import Experiment, experiment_folder, table_code

GRID = {
    "command": "flops",
    "settings": {"model": "sd15"},
    "metrics": ["cost/tflops_all"],
    "objectives": ["cost/tflops_all", "cost/params"],
    "stages": {
        "all": {"space": {"steps": {"type": "categorical", "choices": [1, 2, 3]}}},
        "best": {"best_of": "all", "most": 2, "settings": {"batch": 4}},
    },
}


def read(folder, content):
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Experiment.read(folder)


def test_a_later_stage_takes_the_front_of_an_earlier_one(tmp_path):
    experiment = read(tmp_path, GRID)
    every, best = experiment.stages
    points = experiment.points(every, [])
    assert points[0] == ({"steps": 1}, {"model": "sd15", "steps": 1})
    costs = {1: (1.0, 5.0), 2: (2.0, 6.0), 3: (3.0, 1.0)}  # 2 is worse than 1 in both
    rows = [
        {
            "stage": "all",
            **point,
            **dict(zip(experiment.objectives, costs[point["steps"]], strict=True)),
        }
        for point, _ in points
    ]
    assert experiment.points(best, rows) == [
        ({"steps": 1}, {"model": "sd15", "batch": 4, "steps": 1}),
        ({"steps": 3}, {"model": "sd15", "batch": 4, "steps": 3}),
    ]
    only = GRID["stages"]["best"] | {"where": {"steps": [2, 3]}}
    (tmp_path / "where").mkdir()
    some = read(tmp_path / "where", GRID | {"stages": GRID["stages"] | {"best": only}})
    assert [point["steps"] for point, _ in some.points(some.stages[1], rows)] == [2, 3]
    rows[1]["cost/params"] = None
    with pytest.raises(ValueError, match="stage all: cost/params: not in the metrics of a cell"):
        experiment.points(best, rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comand": "x"}, "unknown key 'comand'"),
        ({"objectives": ["a/b"]}, "objectives: name two"),
        ({"stages": {"x": {}}}, "stages.x: give either space or best_of"),
        ({"stages": {"x": {"best_of": "y"}}}, "stages.x.best_of=y: no earlier stage"),
        (
            {"stages": GRID["stages"] | {"best": {"best_of": "all", "where": {"step": [1]}}}},
            "stages.best.where: unknown key 'step'; allowed: steps",
        ),
        ({"stages": {"x": {"spaces": {}}}}, "unknown key 'spaces'"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path, changes, words):
    with pytest.raises(ValueError, match=r"grid\.yaml") as told:
        read(tmp_path, GRID | changes)
    assert words in str(told.value)
    with pytest.raises(ValueError, match="command is missing"):
        read(tmp_path, {key: value for key, value in GRID.items() if key != "command"})


def test_folders_by_name_and_by_path(tmp_path):
    read(tmp_path, GRID)
    assert experiment_folder(str(tmp_path)) == tmp_path
    assert experiment_folder("steps").name == "steps"
    with pytest.raises(
        FileNotFoundError, match=r"name=stepps: no such experiment; there are .*steps"
    ):
        experiment_folder("stepps")
    with pytest.raises(FileNotFoundError, match=r"no .*table\.py"):
        table_code(tmp_path)
    with pytest.raises(FileNotFoundError, match="no experiment there"):
        Experiment.read(tmp_path / "nothing")
