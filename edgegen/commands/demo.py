"""`python scripts/demo.py`: pictures from the embedded model, and a report of what they cost."""

from __future__ import annotations

from omegaconf import DictConfig

from ..runs.page import ReportPicture
from ..runs.record import Run, read_record
from ..runs.report import write_report
from ._demo_clips import check_clips, make_clips
from ._main import command
from .generate import make_pictures


@command("demo", free_text=("prompts", "prompts_file", "negative_prompt"))
def main(cfg: DictConfig, run: Run) -> None:
    """Make the pictures and clips, or find them made, and write `report.html` beside them."""
    check_clips(cfg)
    made = make_pictures(cfg, run)
    clips = make_clips(cfg, run)
    record = read_record(run.dir)
    settings = record["settings"]
    path = write_report(
        run.dir / "report.html",
        title="What a small diffusion model draws, and what it costs",
        lead=f"{len(made.pictures)} pictures of {settings['width']} × {settings['height']} pixels "
        f"by the model “{settings['model']}”, a latent diffusion model in the layout of Stable "
        "Diffusion. They are not picked: each is the first that came out for its prompt.",
        pictures=[
            ReportPicture(each.file, each.prompt or "(empty prompt)", f"seed {each.seed}")
            for each in made.pictures
        ],
        clips=clips,
        cost=made.cost,
        record=record,
    )
    print(path.resolve())
