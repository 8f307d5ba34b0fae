from __future__ import annotations

from typing import Any

import pytest
from reuse_models import LAYOUTS, make_pipe


@pytest.fixture
def pipe() -> Any:
    """The layout of SD 1.x with three levels of two layers, DPM-Solver++."""
    return make_pipe()


@pytest.fixture(params=sorted(LAYOUTS))
def any_pipe(request: pytest.FixtureRequest) -> Any:
    return make_pipe(request.param)
