"""What ends a study that a user interrupts."""

from __future__ import annotations

import signal

import pytest

from css_ray.execution.session import interruptible, raise_if_interrupted


class _Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_finalizer_is_not_lost() -> None:
    """Python prints what a finalizer raises, and continues."""
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        raise_if_interrupted()  # none came
        finalized = _Finalized()
        del finalized
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    raise_if_interrupted()  # the next study was not interrupted
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_raised_where_it_finds_the_study() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    raise_if_interrupted()
