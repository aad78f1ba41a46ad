"""Signals that stop a run: raised immediately or delayed for a block, and never handled as an exception."""

# ruff: noqa: PT012
import multiprocessing
import os
import pickle
import signal
import threading

import pytest

from potstill.errors import StoppedError
from potstill.runtime import signals


@pytest.fixture(autouse=True)
def usual_handlers():
    """Handlers of a process in the foreground; `nohup` and jobs in the background of a shell ignore some signals."""
    usual = dict.fromkeys(signals.ENDING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_is_raised_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped, signals.listening():
        try:
            send(number)
        except Exception:  # handlers of exceptions must not hide it
            pytest.fail("was handled as an exception")
    assert (stopped.value.signal, stopped.value.code) == (number, 128 + number)
    assert number.name in str(stopped.value)
    assert signal.getsignal(number) == before


def test_the_first_signal_is_delayed_until_the_block_ends():
    done = []
    with pytest.raises(StoppedError), signals.listening(), signals.held():
        with signals.held():
            send(signal.SIGTERM)
            done.append("inner")
        assert signals.received() == signal.SIGTERM
        done.append("outer")
    assert done == ["inner", "outer"]


def test_a_second_signal_is_raised_immediately():
    with pytest.raises(StoppedError) as stopped, signals.listening(), signals.held():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        pytest.fail("delayed to the end of the block")
    assert stopped.value.code == 143  # of the first
    assert signals.again()


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listening():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signals.received() is None


def test_nested_listening_keeps_received_signals():
    with pytest.raises(StoppedError), signals.listening(), signals.held():
        send(signal.SIGTERM)
        with signals.listening():
            assert signals.received() == signal.SIGTERM


def test_a_thread_cannot_listen():
    found, before = [], signal.getsignal(signal.SIGTERM)

    def listen():
        with signals.listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_signals_in_a_forked_process(number, code):
    """SIGTERM ends it; Ctrl-C, which the whole process group receives, is handled by the parent."""
    with signals.listening():
        child = multiprocessing.get_context("fork").Process(target=send, args=(number,))
        child.start()
        child.join(timeout=30)
    assert child.exitcode == code
    assert signals.received() is None


def test_the_error_can_be_pickled():
    again = pickle.loads(pickle.dumps(StoppedError("stopped by SIGINT", signal.SIGINT)))
    assert (str(again), again.code) == ("stopped by SIGINT", 130)
