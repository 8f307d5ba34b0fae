import csv
from concurrent.futures import ThreadPoolExecutor

from edgegen.runs import looks


def test_every_look_is_a_row_below_one_header(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "git_state", lambda: {"sha": "a" * 40, "dirty": False})
    path = tmp_path / "experiments" / "test_looks.csv"
    assert looks.log_look({"model": "emoji, the first", "score": "0.5"}, path)
    monkeypatch.setattr(looks, "git_state", lambda: {"sha": "b" * 40, "dirty": True})
    assert looks.log_look({"model": "emoji", "score": "0.6"}, path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["emoji, the first", "emoji"]
    assert [row["commit"] for row in rows] == ["a" * 12, "b" * 12 + "+changes"]
    assert all(row["time"].endswith("+00:00") and row["who"] for row in rows)


def test_looks_at_the_same_time_have_one_header(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "git_state", lambda: {"sha": "a" * 40, "dirty": False})
    path = tmp_path / "test_looks.csv"
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: looks.log_look({"model": str(n)}, path), range(24)))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["model"]) for row in rows) == list(range(24))


def test_outside_a_checkout_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "git_state", lambda: {"sha": None, "dirty": None})
    assert not looks.log_look({"model": "emoji"}, tmp_path / "looks.csv")
    assert list(tmp_path.iterdir()) == []
