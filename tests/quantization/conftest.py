from __future__ import annotations

from typing import Any

import pytest
from quantization_models import draw, make_pipe, make_text_pipe

from edgegen.quantization import Call, record_calls


@pytest.fixture
def pipe() -> Any:
    return make_pipe()


@pytest.fixture
def text_pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_text_pipe(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="session")
def calls() -> list[Call]:
    """A run of `pipe` in four steps."""
    pipe = make_pipe()
    with record_calls(pipe) as recorder:
        draw(pipe, 4)
    return recorder.calls
