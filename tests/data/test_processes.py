"""Work that is shared among processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from css_ray.data.processes import in_processes


def square_or_die(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(processes: int) -> None:
    assert list(in_processes(processes)(square_or_die, range(20))) == [number * number for number in range(20)]


def test_a_process_that_dies_is_one_sentence() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(
        OSError, match=r"one of the 2 processes that share the work was killed or crashed; .* --processes"
    ) as caught:
        list(in_processes(2)(square_or_die, [1, 2, -1, 3]))
    assert caught.value.errno is None
    assert set(multiprocessing.active_children()) <= before
