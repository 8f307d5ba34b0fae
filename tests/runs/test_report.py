import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from edgegen.runs.page import ReportPicture, metric
from edgegen.runs.report import write_report

COST = {
    "metrics": {
        "cost/total_tflops_all": 0.25,
        "cost/seconds_per_image": 0.0421,
        "cost/total_params": 9_870_000,
    },
    "parts": [
        {
            "name": "text_encoder",
            "params": 1_000_000,
            "calls": 2.0,
            "gmacs_all": 0.0004,
            "gmacs_conv_linear": 0.0003,
            "share": 0.0004,
            "seconds": 0.002,
        },
        {
            "name": "unet",
            "params": 8_870_000,
            "calls": 20.0,
            "gmacs_all": 124.9996,
            "gmacs_conv_linear": 100.0,
            "share": 0.9996,
            "seconds": None,
        },
    ],
    "images": 16,
    "warm": True,
    "uncounted": {"aten::odd": 3},
}
RECORD = {
    "command": "demo",
    "start": "2026-01-02T03:04:05.678+00:00",
    "seeds": [0],
    "settings": {"steps": 20, "model": "<script>alert(1)</script>", "width": 64, "height": 64},
    "git": {"sha": "f" * 40, "dirty": True, "diff_sha256": "a" * 64},
    "machine": {"processor": "A & B", "threads": 2},
    "versions": {"torch": "2.13.0"},
    "files": {"x/unet.safetensors": {"sha256": "0" * 64, "bytes": 1}},
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(folder, cost=COST, **more):
    pictures = []
    for number, caption in enumerate(['<b> & "quotes"', "fox", ""]):
        Image.new("RGB", (64, 64), (number * 50, 0, 0)).save(folder / f"{number}.png")
        pictures.append(ReportPicture(folder / f"{number}.png", caption, "seed 0"))
    path = write_report(
        folder / "r.html",
        title="T <i>",
        lead="lead",
        pictures=pictures,
        cost=cost,
        record=RECORD,
        **more,
    )
    return Page(path.read_text()), path.read_text()


def test_the_file_needs_nothing_beside_it(tmp_path):
    page, text = report(tmp_path)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    for number, image in enumerate(images):
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(data) == (tmp_path / f"{number}.png").read_bytes()
    assert len(images) == 3
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", text)


def test_what_users_typed_is_text_not_markup(tmp_path):
    page, text = report(tmp_path)
    assert "<script>" not in text
    assert "<script>alert(1)</script>" in page.text
    alt = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alt == ['<b> & "quotes"', "fox", ""]


def test_the_table_holds_the_figures(tmp_path):
    page, _ = report(tmp_path)
    words = " ".join(page.text.split())
    for figure in (
        "250 GFLOP",
        "42.1 ms",
        "9.87 M",
        "Text encoder 1.00 M 2 400 k 300 k < 0.1 % 2.00 ms",
        "UNet 8.87 M 20 125 G 100 G 100.0 %",
        "Total 9.87 M 125 G 100 G 100.0 %",
        "aten::odd (3×)",
        "medians over batches, 16 pictures after a first batch",
        "f" * 40 + ", with changes (aaaaaaaaaaaa)",
        "2026-01-02 03:04:05",
    ):
        assert figure in words


def test_many_pictures_and_no_cost_are_told(tmp_path):
    page, _ = report(tmp_path, cost=None, most=2)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert "folder: 1 more" in page.text
    assert "The cost is not known" in page.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.00"),
        (1, "1.00"),
        (999.6, "1.00 k"),
        (84_299, "84.3 k"),
        (2.5e9, "2.50 G"),
        (123e12, "123 T"),
        (0.0042, "4.20 m"),
        (3.3e-7, "0.33 µ"),
    ],
)
def test_metric_prefixes(value, shown):
    assert metric(value) == shown
