from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgegen.cost import Cost, ModuleCost
from edgegen.cost.devices import DEVICES
from edgegen.cost.profiling import Profile, Row
from edgegen.cost.roofline import Device
from edgegen.runs.profile_plots import roofline_plot, step_change_plot
from edgegen.runs.profile_report import table_csv, write_profile
from edgegen.runs.profile_tables import Analysis, attack_text, metrics_of

MACHINE = Device("<b>box</b>", 100e9, 10e9, source="measured & kept", measured=True)
CHANGES = {"unet": [0.5, 0.3], "unet.mid_block": [0.2, 0.1]}
RECORD = {"command": "profile", "settings": {"model": "<script>alert(1)</script>", "steps": 3}}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def network(name: str, calls: int, parts: Sequence[tuple[str, float, int, int]]) -> Profile:
    """A root without work of its own, and `parts`: (name, seconds, MACs, bytes)."""
    rows = [
        Row(f"{name}.{part}", "Block", 1, 1, seconds, 0.0, seconds, work, work, False)
        for part, seconds, macs, moved in parts
        for work in [ModuleCost(conv=macs, attention=macs // 4, bytes=moved)]
    ]
    whole = sum((row.cost for row in rows), ModuleCost())
    seconds = sum(row.seconds for row in rows)
    root = Row(name, "Net", 0, 1, seconds, 0.0, 0.0, whole, ModuleCost(), True)
    cost = Cost({row.name: row.cost for row in rows})
    return Profile(name, calls, seconds, 0.001, [root, *rows], cost, 5)


@pytest.fixture
def analysis() -> Analysis:
    blocks = [(f"down_blocks.{i}", 0.1 * (i + 1), 10**9 * (i + 1), 10**8) for i in range(12)]
    unet = network("unet", 3, [*blocks, ("mid_block", 0.01, 0, 0), ("act", 0.05, 0, 10**8)])
    decoder = network("vae.decoder", 1, [("conv_in", 30.0, 10**9, 10**9)])
    return Analysis("tiny & co", [unet, decoder], MACHINE, DEVICES, changes=CHANGES)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_slowest_and_farthest(analysis: Analysis) -> None:
    slowest = analysis.slowest()
    assert len(slowest) == 10
    assert [each.name for each in slowest[:2]] == ["vae.decoder.conv_in", "unet.down_blocks.11"]
    assert slowest[1].seconds == pytest.approx(3 * 1.2)
    # 30 s against 1e9 × 1.25 MACs × 2 / 100e9 (or 0.1 s of traffic)
    farthest = analysis.farthest()
    assert farthest[0].name == "vae.decoder.conv_in"
    assert farthest[0].times_roof == pytest.approx(30 / 0.1)
    names = [each.name for each in farthest]
    assert "unet.mid_block" not in names  # no roof: it moves nothing
    assert "unet.act" not in names  # 0.15 s of 53.6: less than 1 %
    assert "unet.down_blocks.0" not in names


def test_files(analysis: Analysis, tmp_path: Path) -> None:
    files = write_profile(tmp_path, analysis, RECORD)
    assert files[-1] == tmp_path / "report.html"
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    for name in ("roofline.png", "step_change.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    changes = list(csv.reader((tmp_path / "step_change.csv").open()))
    assert changes[0] == ["module", "evaluation_2", "evaluation_3"]
    assert changes[1] == ["unet", "0.5", "0.3"]


def test_without_changes(analysis: Analysis, tmp_path: Path) -> None:
    write_profile(tmp_path, analysis, RECORD)
    reason = "the weights are random"
    bare = Analysis("tiny", analysis.profiles, MACHINE, (), why_no_changes=reason)
    write_profile(tmp_path, bare, {})
    assert not list(tmp_path.glob("step_change*"))  # those of before are gone
    assert reason in (tmp_path / "report.html").read_text()


def test_table(analysis: Analysis) -> None:
    rows = {row["module"]: row for row in csv.DictReader(io.StringIO(table_csv(analysis)))}
    assert len(rows) == 1 + 14 + 2
    block = rows["unet.down_blocks.1"]
    assert (block["network"], block["class"], block["level"]) == ("unet", "Block", "1")
    assert float(block["seconds"]) == float(block["own_seconds"]) == pytest.approx(0.2)
    assert int(block["macs_all"]) == 2.5e9
    assert int(block["macs_conv_linear"]) == 2e9
    assert float(block["flops_per_byte"]) == 2 * 2.5e9 / 1e8
    assert float(block["time_share"]) == pytest.approx(0.2 / 7.86)
    assert float(block["macs_share"]) == pytest.approx(2 / 78)
    assert float(block["roof_seconds"]) == pytest.approx(2 * 2.5e9 / 100e9)
    assert block["mean_step_change"] == ""
    assert float(rows["unet.mid_block"]["mean_step_change"]) == pytest.approx(0.15)


def test_metrics(analysis: Analysis) -> None:
    metrics = metrics_of(analysis)
    assert metrics["profile/seconds_per_image"] == pytest.approx(3 * 7.86 + 30)
    assert metrics["profile/unet_calls"] == 3
    assert metrics["profile/unet_gmacs_all"] == pytest.approx(78 * 1.25)
    assert metrics["profile/unet_gmacs_conv_linear"] == pytest.approx(78)
    assert metrics["profile/vae_decoder_own_sum"] == pytest.approx(1)
    assert metrics["machine/gflops_per_second"] == 100
    assert metrics["step_change/unet.mid_block"] == pytest.approx(0.15)
    assert all(re.fullmatch(r"[a-z0-9_]+/[a-z0-9_.]+", name) for name in metrics)


def test_text(analysis: Analysis) -> None:
    lines = attack_text(analysis).splitlines()
    assert lines[2].split() == ["vae.decoder.conv_in", "30.0", "s", "56.0", "%", "300.0"]
    assert lines[-1].startswith("<b>box</b>: peak 100 GFLOP/s, memory 10.0 GB/s, ridge 10.0")


def test_the_page_needs_nothing_beside_it(analysis: Analysis, tmp_path: Path) -> None:
    text = write_profile(tmp_path, analysis, RECORD)[-1].read_text()
    page = Page(text)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {"slowest", "farthest", "modules", "devices", "changes"} <= set(page.ids)
    assert "<script>alert" not in text
    assert "<b>box</b>" not in text
    for device in DEVICES:
        assert device.name in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_sorting_in_a_browser(analysis: Analysis, tmp_path: Path) -> None:
    text = write_profile(tmp_path, analysis, RECORD)[-1].read_text()
    probe = """<script>
    const table = document.querySelector("#modules ~ .scroll table");
    const texts = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
    const click = i => table.tHead.rows[0].cells[i].querySelector("button").click();
    const seen = [];
    for (const column of [2, 2, 0, 12]) { click(column); seen.push(texts(0)); }
    seen.push([...table.tHead.rows[0].cells].map(head => head.getAttribute("aria-sort")));
    document.body.dataset.seen = JSON.stringify(seen);
    </script></body>"""
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chr'}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    seen = next(value for name, value in Page(done.stdout).attributes if name == "data-seen")
    by_time_up, by_time, by_name, by_change, sorts = json.loads(seen)
    assert by_time[:2] == ["vae.decoder", "vae.decoder.conv_in"]  # 30 s, in the order they stood
    assert by_time_up[:2] == ["unet.mid_block", "unet.act"]  # 0.01 and 0.05 s
    assert by_name.index("unet.down_blocks.2") < by_name.index("unet.down_blocks.10")
    assert by_change[:2] == ["unet.mid_block", "unet"]  # what is not known comes last
    assert sorts[12] == "ascending"
    assert sorts.count(None) == len(sorts) - 1


def test_plots_without_a_point(analysis: Analysis) -> None:
    idle = [each for each in analysis.targets if not each.cost.macs_all]
    assert idle
    for targets in ([], idle):
        assert Image.open(io.BytesIO(roofline_plot(targets, MACHINE, ()))).width > 500


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": [0.0]},
        {"a": [0.1] * 40, "b": [2.0, float("inf")]},
        {f"m{i}": [1.0] for i in range(90)},
    ],
)
def test_heat_maps_of_odd_shapes(changes: dict[str, list[float]]) -> None:
    image = Image.open(io.BytesIO(step_change_plot(changes)))
    assert image.width >= 700
    assert image.height >= 300
