from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from video_models import make_pipe


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    """A tiny InstructPix2Pix pipeline with Euler Ancestral."""
    return make_pipe(tmp_path)


@pytest.fixture
def sd_pipe(tmp_path: Path) -> Any:
    """A tiny Stable Diffusion pipeline with DDIM."""
    return make_pipe(tmp_path, "sd1")
