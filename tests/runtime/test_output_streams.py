"""Standard output that breaks off: the work is done all the same."""

import io
from pathlib import Path

import pytest

from potstill.runtime.output_streams import outliving_readers


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise ValueError("no descriptor")


def test_what_cannot_be_written_is_dropped(monkeypatch):
    monkeypatch.setattr("sys.stdout", Broken())
    with outliving_readers() as out:
        print("lost")
        print("lost, too")
    assert isinstance(out.error, BrokenPipeError)


def test_a_closed_stream_and_a_whole_one(monkeypatch, capsys):
    with outliving_readers() as out:
        print("kept")
    assert out.error is None
    assert capsys.readouterr().out == "kept\n"
    monkeypatch.setattr("sys.stdout", None)
    with outliving_readers() as out:
        print("nowhere")
    assert out is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_is_noticed_when_it_is_flushed(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with outliving_readers() as out:
            print("buffered")
            out.flush()
        assert out.error.errno == 28
