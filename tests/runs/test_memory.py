"""The measuring process, on allocations of known size."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from edgegen.runs.memory import peak_memory

MB = 1_000_000


def filled(megabytes):
    return bytearray(b"x") * (megabytes * MB)


def allocate(loaded, worked):
    """Loads (peaking at thrice that), then works, holding both."""
    kept = filled(3 * loaded)
    del kept
    kept = filled(loaded)

    def work():
        print("this must not mix with the answer")
        passing = filled(worked)
        return len(passing) + len(kept)

    return work


def fail(message):
    raise ValueError(message)


def end_by(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def modules():
    assert not {"torch", "numpy"} & set(sys.modules)
    return lambda: None


@pytest.mark.parametrize("worked", [50, 200])
def test_the_peak_is_that_of_the_work(worked):
    here = filled(600)  # what this process holds is not counted
    memory = peak_memory(allocate, 100, worked)
    assert memory.rise == pytest.approx(worked * MB, abs=5 * MB)
    assert memory.peak - memory.rise == memory.before
    assert 100 * MB < memory.before < 200 * MB
    assert len(here) == 600 * MB


def test_nothing_else_is_in_the_process():
    assert peak_memory(modules).peak < 60 * MB


def test_threads_are_those_asked_for():
    peak_memory(threads, 3, threads=3)


def threads(wanted):
    import torch

    assert torch.get_num_threads() == wanted
    return lambda: None


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"^ValueError: too little of it$"):
        peak_memory(fail, "too little of it")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_is_ended_says_by_what(number):
    with pytest.raises(RuntimeError, match=f"signal {int(number)}$"):
        peak_memory(end_by, int(number))
