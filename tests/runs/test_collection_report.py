"""The page of several runs: what it says, and how it behaves in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from edgegen.runs.collection_report import Shown, flat, write_collection_report
from edgegen.runs.record import Run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VIDEO = b"\x00\x00\x00\x18ftypmp42" + bytes(64)


def made(folder: Path, config: dict, metrics: dict, finish: bool = True) -> Shown:
    run = Run(folder, config=config, command="generate")
    run.info(code="c1")
    run.log(metrics)
    Image.new("RGB", (64, 48), (200, 80, 30)).save(folder / "grid.png")
    if finish:
        run.finish()
    return Shown.read(folder)


@pytest.fixture
def runs(tmp_path):
    """Three finished runs and one that is not."""
    values = {"b": (0.30, 9, "DDIM"), "a": (0.20, 10, "<b>Euler</b>"), "c": (0.31, 100, "PNDM")}
    found = [
        made(
            tmp_path / name,
            {"steps": steps, "scheduler": scheduler, "model": {"source": "x"}, "output_dir": name},
            {"quality/a_rmse": v, "quality/a_rmse_lo": v - 0.02, "quality/a_rmse_hi": v + 0.02}
            | {"cost/tflops_all": steps * 1.5},
        )
        for name, (v, steps, scheduler) in values.items()
    ]
    (tmp_path / "a" / "out.mp4").write_bytes(VIDEO)
    return [*found, made(tmp_path / "d", {"steps": 7}, {"quality/a_rmse": 0.01}, finish=False)]


class Page(HTMLParser):
    """The table's texts, the tags, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "link"}:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def write(runs, folder, **more) -> Path:
    return write_collection_report(
        folder / "report.html", runs, title="T <i>", lead="lead & more", **more
    )


def test_the_table_shows_what_differs_and_the_figures(runs, tmp_path):
    page = Page(write(runs, tmp_path).read_text())
    assert page.rows[0] == [
        "run",
        "steps",
        "scheduler",
        "source",
        "quality/a_rmse",
        "cost/tflops_all",
    ]
    assert page.rows[1:4] == [
        ["b", "9", "DDIM", "x", "0.300 [0.280, 0.320]", "13.5"],
        ["a", "10", "<b>Euler</b>", "x", "0.200 [0.180, 0.220]", "15"],
        ["c", "100", "PNDM", "x", "0.310 [0.290, 0.330]", "150"],
    ]
    # The figures of a run that is not finished are no results.
    assert page.rows[4] == ["d", "7", "", "", "running", "running"]
    assert "Not finished, and so without figures: 1 of 4 runs." in page.text
    best = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "best"]
    assert [attrs["data-value"] for attrs in best] == ["13.5", "0.2"]


def test_it_needs_nothing_beside_it(runs, tmp_path):
    text = write(runs, tmp_path, plots=[("a plot", b"\x89PNG")]).read_text()
    page = Page(text)
    sources = [
        attrs["src"]
        for tag, attrs in page.tags
        if tag in ("img", "video", "script") and "src" in attrs
    ]
    assert all(source.startswith("data:") for source in sources)
    assert len(sources) == 1 + 4 + 1
    (video,) = [source for source in sources if source.startswith("data:video/mp4;base64,")]
    assert base64.b64decode(video.partition(",")[2]) == VIDEO
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", text)
    assert "<b>Euler" not in text
    assert "T <i>" in page.text


def test_every_record_is_there(runs, tmp_path):
    page = Page(write(runs, tmp_path).read_text())
    assert len([tag for tag, _ in page.tags if tag == "details"]) == 4
    for words in ("scheduler", "PNDM", "quality/a_rmse_lo", "Package versions", "generate"):
        assert words in page.text


def test_large_files_stay_outside(runs, tmp_path):
    (tmp_path / "c" / "long.webm").write_bytes(bytes(5_000_000))
    path = write(runs, tmp_path)
    assert path.stat().st_size < 1_000_000
    assert "being large or many: c/long.webm" in Page(path.read_text()).text


def test_many_metrics_are_chosen_from(tmp_path):
    numbers = {f"quality/x{i}": float(i) for i in range(9)} | {f"cost/y{i}": 1.0 for i in range(9)}
    one = made(tmp_path / "one", {}, numbers)
    two = made(tmp_path / "two", {}, {name: value + 1 for name, value in numbers.items()})
    heads = Page(write([one, two], tmp_path).read_text()).rows[0]
    assert set(heads) >= {f"quality/x{i}" for i in range(9)}
    assert len(heads) == 1 + 14
    asked = Page(write([one], tmp_path, metrics=["cost/y3"], settings=[]).read_text())
    assert asked.rows[0] == ["run", "cost/y3"]
    with pytest.raises(ValueError, match="no runs"):
        write([], tmp_path)


def test_flat():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


# In a browser

PROBE = """
<script>
window.problems = [];
window.addEventListener("error", function (event) { window.problems.push(String(event.message)); });
["error", "warn"].forEach(function (kind) {
  console[kind] = function () { window.problems.push(Array.from(arguments).join(" ")); };
});
</script>
"""
CLICKS = """
<script>
const order = () =>
  Array.from(document.querySelectorAll("tbody tr")).map(row => row.cells[0].textContent);
const heads = Array.from(document.querySelectorAll("thead th"));
const found = { start: order() };
heads.forEach(function (head) {
  const name = head.textContent;
  head.querySelector("button").click();
  found[name + " up"] = order();
  found[name + " state"] = heads.map(other => other.getAttribute("aria-sort"));
  head.querySelector("button").click();
  found[name + " down"] = order();
});
found.wide = document.documentElement.scrollWidth - window.innerWidth;
found.width = window.innerWidth;
found.broken = Array.from(document.images).filter(i => i.complete && !i.naturalWidth).length;
found.problems = window.problems;
document.body.innerHTML = "";
document.body.append(JSON.stringify(found));
</script>
"""


def browse(path: Path, width: int) -> dict:
    """What a browser finds in the page after clicks on all heads."""
    text = path.read_text().replace("<head>", "<head>" + PROBE)
    tried = path.with_name("tried.html")
    tried.write_text(text.replace("</body>", CLICKS + "</body>"))
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *(f"--window-size={width},900", f"--user-data-dir={path.parent / 'profile'}"),
        tried.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert body, done.stderr[-2000:]
    return json.loads(html.unescape(body[1]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [500, 1280])
def test_sorting_in_a_browser(runs, tmp_path, width):
    png = (tmp_path / "a" / "grid.png").read_bytes()
    found = browse(write(runs, tmp_path, plots=[("a plot", png)]), width)
    assert found["problems"] == []
    assert found["start"] == ["b", "a", "c", "d"]
    assert found["run up"] == ["a", "b", "c", "d"]
    assert found["run down"] == ["d", "c", "b", "a"]
    # As numbers: 7, 9, 10, 100.
    assert found["steps up"] == ["d", "b", "a", "c"]
    assert found["steps down"] == ["c", "a", "b", "d"]
    assert found["steps state"] == [None, "ascending", None, None, None, None]
    # As texts; what is empty comes last either way.
    assert found["scheduler up"] == ["a", "b", "c", "d"]
    assert found["scheduler down"] == ["c", "b", "a", "d"]
    assert found["quality/a_rmse up"] == ["a", "b", "c", "d"]
    assert found["quality/a_rmse down"] == ["c", "b", "a", "d"]
    # Only the table's own box scrolls sideways.
    assert found["wide"] <= 0
    assert found["broken"] == 0
    assert found["width"] == width


def test_of_many_metrics_error_and_cost_are_shown(tmp_path):
    many = {f"quality/a{n}": n + 0.5 for n in range(20)} | {"quality/a1_noto": 1.5}
    many |= {"quality/ode_rmse": 0.1, "cost/tflops_all": 2.5, "cost/a": 1.0}
    runs = [
        made(tmp_path / name, {"method": {"_target_": name, "clock": clock}}, many)
        for name, clock in (("a", 2), ("b", 3))
    ]
    (head, *_) = Page(write(runs, tmp_path).read_text()).rows
    assert head[:3] == ["run", "clock", "quality/ode_rmse"]
    assert head[-1] == "cost/tflops_all"
    assert len(head) == 2 + 14
    assert "quality/a1_noto" not in head


def test_what_names_a_run_stands_for_its_settings(tmp_path):
    made(tmp_path / "a", {"clock": 2, "cut": 1}, {"cost/a": 1.5})
    made(tmp_path / "b", {"clock": 3, "cut": 2}, {"cost/a": 2.5})
    runs = [Shown.read(tmp_path / name, {"row": f"clock {name}"}) for name in "ab"]
    rows = Page(write(runs, tmp_path).read_text()).rows
    assert rows[0] == ["run", "row", "cost/a"]
    assert [row[1] for row in rows[1:3]] == ["clock a", "clock b"]
    rows = Page(write(runs, tmp_path, settings=["cut"]).read_text()).rows
    assert rows[0] == ["run", "cut", "cost/a"]
