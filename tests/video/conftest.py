from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edits import SCHEDULERS
from video_models import make_pipe


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    """A tiny InstructPix2Pix pipeline with Euler Ancestral."""
    return make_pipe(tmp_path)


@pytest.fixture
def sd_pipe(tmp_path: Path) -> Any:
    """A tiny Stable Diffusion pipeline with DDIM."""
    return make_pipe(tmp_path, "sd1")


@pytest.fixture(params=sorted(SCHEDULERS))
def any_scheduler(request: pytest.FixtureRequest, pipe: Any) -> Any:
    pipe.scheduler = SCHEDULERS[request.param]
    return pipe
