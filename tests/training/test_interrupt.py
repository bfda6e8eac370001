"""Signals: the first is noted, and the handlers that were there before come back."""

import signal
import threading

import pytest

from flowopd.training.interrupt import Asked, asked_to_end

BOTH = (signal.SIGTERM, signal.SIGINT)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


def test_nobody_asks() -> None:
    with asked_to_end() as asked:
        assert not asked
    assert asked.by == ""


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_noted_and_work_goes_on(number: signal.Signals) -> None:
    done = []
    with asked_to_end() as asked:
        signal.raise_signal(number)
        done.append("the step")
        assert asked
        assert asked.by == number.name
    assert done == ["the step"]


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with asked_to_end():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_does_not() -> None:
    """Schedulers send it several times."""
    with asked_to_end() as asked:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert asked.by == "SIGTERM"


def test_ctrl_c_after_sigterm_does_not_wait() -> None:
    with asked_to_end():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_from_before_come_back() -> None:
    before = handlers()
    with asked_to_end():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(ValueError, match="wrong"), asked_to_end():
        raise ValueError("wrong")
    assert handlers() == before


def test_one_within_another_asks_the_inner_one() -> None:
    with asked_to_end() as outer:
        with asked_to_end() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner
        assert not outer
        signal.raise_signal(signal.SIGTERM)
        assert outer


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, found = handlers(), list[tuple[Asked, list[object]]]()

    def work() -> None:
        with asked_to_end() as asked:
            found.append((asked, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((asked, during),) = found
    assert not asked
    assert during == before
