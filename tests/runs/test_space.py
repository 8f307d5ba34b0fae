import json

import optuna
import pytest

from edgegen.runs.space import grid_points, point_settings, read_axes

SPACE = {
    "steps": {"type": "int", "low": 4, "high": 12, "step": 4},
    "guidance": {"type": "float", "low": 1, "high": 2, "step": 0.5},
    "method": {
        "type": "categorical",
        "choices": {
            "none": {"method": []},
            "clock": {"method": ["clockwork"], "method.clockwork.clock": 2},
        },
    },
    "seeds": {"type": "categorical", "choices": [[0], [0, 1]]},
}


def test_the_grid_is_every_combination_once():
    axes = read_axes(SPACE)
    points = grid_points(axes)
    assert len(points) == 3 * 3 * 2 * 2
    assert len({json.dumps(point) for point in points}) == len(points)
    assert {point["steps"] for point in points} == {4, 8, 12}
    assert {point["guidance"] for point in points} == {1.0, 1.5, 2.0}
    assert points[0] == {"steps": 4, "guidance": 1.0, "method": "none", "seeds": "[0]"}
    assert points[1] == {"steps": 4, "guidance": 1.0, "method": "none", "seeds": "[0, 1]"}


def test_a_choice_may_set_several_settings():
    axes = read_axes(SPACE)
    point = {"steps": 8, "guidance": 2.0, "method": "clock", "seeds": "[0, 1]"}
    assert point_settings(axes, point) == {
        "steps": 8,
        "guidance": 2.0,
        "method": ["clockwork"],
        "method.clockwork.clock": 2,
        "seeds": [0, 1],
    }


def test_a_float_grid_has_no_rounding_dust():
    (axis,) = read_axes({"x": {"type": "float", "low": 0.1, "high": 0.7, "step": 0.1}})
    assert axis.grid() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_optuna_draws_what_the_axes_allow():
    space = SPACE | {"rate": {"type": "float", "low": 1e-3, "high": 1, "log": True}}
    axes = read_axes(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    small = 0
    for _ in range(40):
        trial = study.ask()
        point = {axis.name: axis.suggest(trial) for axis in axes}
        assert {**point, "rate": 0} in [{**p, "rate": 0} for p in grid_points(axes[:-1])]
        assert 1e-3 <= point["rate"] <= 1
        small += point["rate"] < 0.03
    assert small > 10  # half of a log scale


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: is empty"),
        ({"x": [1, 2]}, "space.x: type=None: must be one of categorical, int, float"),
        ({"x": {"type": "real"}}, "space.x: type=real"),
        ({"x": {"type": "int", "low": 1, "hihg": 2}}, "space.x: unknown key 'hihg'"),
        ({"x": {"type": "int", "low": 1}}, "space.x: high=None: must be a whole number"),
        ({"x": {"type": "int", "low": 1, "high": 2.5}}, "space.x: high=2.5"),
        ({"x": {"type": "float", "low": 1, "high": float("inf")}}, "space.x: high=inf"),
        ({"x": {"type": "int", "low": 3, "high": 2}}, "low must be at most high"),
        ({"x": {"type": "float", "low": 0, "high": 2, "log": True}}, "positive on a log scale"),
        ({"x": {"type": "int", "low": 1, "high": 9, "step": 2, "log": True}}, "exclude each other"),
        ({"x": {"type": "categorical", "choices": []}}, "choices must be a list"),
        ({"x": {"type": "categorical", "choices": [1, 1]}}, "must differ"),
        ({"x": {"type": "categorical", "choices": {"a": 1}}}, "choice 'a' must be a mapping"),
    ],
)
def test_a_mistake_is_told_in_one_line(space, words):
    with pytest.raises(ValueError, match="space") as told:
        read_axes(space)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_grid_of_reals_needs_a_step():
    axes = read_axes({"x": {"type": "float", "low": 0, "high": 1}})
    with pytest.raises(ValueError, match=r"space\.x: a grid of real numbers needs a step"):
        grid_points(axes)
