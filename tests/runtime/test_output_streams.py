"""Standard output with errors: the command continues."""

import io
from pathlib import Path

import pytest

from potstill.runtime.output_streams import outliving_readers


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise ValueError("no descriptor")


def test_output_is_dropped_after_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdout", Broken())
    with outliving_readers() as out:
        print("lost")
        print("lost, too")
    assert isinstance(out.error, BrokenPipeError)


def test_open_and_closed_streams(monkeypatch, capsys):
    with outliving_readers() as out:
        print("kept")
    assert out.error is None
    assert capsys.readouterr().out == "kept\n"
    monkeypatch.setattr("sys.stdout", None)
    with outliving_readers() as out:
        print("nowhere")
    assert out is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_errors_of_flushing_are_recorded(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with outliving_readers() as out:
            print("buffered")
            out.flush()
        assert out.error.errno == 28
