"""Commands as forks of one process that has imported what they import: real processes, without 6 seconds of imports.

`Server` starts that process, `Forked` is a script that runs in a fork of it, with the interface of `subprocess.Popen`.
A fork whose `Forked` is closed, or whose owner dies, is killed.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = "POTSTILL_TESTS_SERVER"  # of the server that a fork came from, for processes that it starts itself
IMPORTS = {
    "torch": ("hydra", "torch", "lightning.pytorch", "transformers", "transformers.models.bert.modeling_bert",
              "transformers.models.gpt2.modeling_gpt2", "transformers.models.auto.modeling_auto",
              "potstill.cli.commands", "potstill.runs.train", "potstill.runs.evaluate", "potstill.methods.language",
              "potstill.methods.task", "potstill.methods.step_by_step", "potstill.reporting.model_card",
              "potstill.training.language", "potstill.teacher_cache", "transformers.models.align"),
    "no torch": ("hydra", "hydra._internal.hydra", "omegaconf", "yaml", "potstill.cli.commands"),
}  # fmt: skip


class Server:
    """A process that forks; `kind` says what it has imported."""

    def __init__(self, kind: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self.address = f"{self._folder.name}/socket"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, kind, self.address]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


class Forked:
    """A script with arguments, in a fork of a server."""

    def __init__(self, address, script, arguments, *, environment, folder, stdout=None, stderr=None):
        self.args = [script, *arguments]
        self.returncode = None
        self.out, self.err = stdout or tempfile.TemporaryFile("w+b"), stderr or tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        job = {"argv": [str(part) for part in self.args], "environment": environment, "folder": str(folder)}
        socket.send_fds(self._connection, [b"!"], [self.out.fileno(), self.err.fileno()])
        self._connection.sendall(json.dumps(job).encode() + b"\n")
        self.pid = int(self._answer())

    def _answer(self):
        """A line of the server; empty where it is gone."""
        line = b""
        while not line.endswith(b"\n") and (byte := self._connection.recv(1)):
            line += byte
        return line

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._answer()
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self.returncode = int(answer or -signal.SIGKILL)
            self.close()
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def close(self):
        self._connection.close()

    def communicate(self, timeout=None):
        """All of stdout and stderr, when it has ended."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return tuple(texts)


def nested(original):
    """`subprocess.Popen` of a fork: a command of the package is a fork of the same server too."""

    def start(args, *positional, env=None, cwd=None, **options):
        words = [] if isinstance(args, str | bytes | os.PathLike) else [str(part) for part in args]
        own_streams = options.get("stdout") is not None or options.get("stderr") is not None
        given = _script(words) if words[:1] == [sys.executable] and not own_streams else None
        if given is None:
            return original(args, *positional, env=env, cwd=cwd, **options)
        sys.stdout.flush()
        sys.stderr.flush()
        return Forked(
            os.environ[ADDRESS], *given, environment=dict(os.environ if env is None else env),
            folder=cwd or Path.cwd(), stdout=os.fdopen(os.dup(1), "wb"), stderr=os.fdopen(os.dup(2), "wb"),
        )  # fmt: skip

    return start


def _script(words):
    """The script that a command line of Python's runs, and its arguments; None where it is no command of ours."""
    match words[1:]:
        case ["-m", "potstill.cli.main", *arguments]:
            return ROOT / "train.py", arguments
        case ["-c", code, *arguments] if "import evaluate" in code:
            return ROOT / "evaluate.py", arguments
        case ["-u", script, *arguments] | [script, *arguments] if script.endswith(".py"):
            return script, arguments
    return None


def receive(connection):
    """A job's description, and descriptors for its output."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    return json.loads(connection.makefile("r").readline()), descriptors


def become(job, descriptors):
    """Make this fork the process of the job; gives its script."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    address = os.environ[ADDRESS]
    os.environ.clear()
    os.environ.update({**job["environment"], ADDRESS: address})
    os.chdir(job["folder"])
    own = filter(None, job["environment"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(Path(job["argv"][0]).parent), *own]
    sys.argv[:] = job["argv"]
    subprocess.Popen = nested(subprocess.Popen)
    return job["argv"][0]


def watch(connection, pid):
    """Wait for a fork, whose end goes to the connection; where that closes, the fork is killed."""

    def kill_when_closed():
        with suppress(OSError):
            connection.recv(1)
            os.killpg(pid, signal.SIGKILL)

    threading.Thread(target=kill_when_closed, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def warm_up(kind):
    """Do once what is slow the first time: Hydra's plugins and parser, a plot, transformers' table of conversions.

    Latencies are measured briefly in all forks.
    """
    from hydra import compose, initialize_config_dir

    from potstill.config import config_folder, register

    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        compose("train", ["data.train_files=[a,b]"], return_hydra_config=True)
    if kind == "torch":
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        from potstill.evaluation import latency
        from potstill.reporting.plots import drawing

        assert latency.BUDGET_SECONDS == 3
        latency.BUDGET_SECONDS = 0.05  # measured briefly
        get_checkpoint_conversion_mapping("bert")
        drawing("warm up", lambda axes: axes.plot([0, 1], [0, 1]))


def serve(kind, address):
    """Returns in forks alone, with the script to be run."""
    import gc
    import importlib

    sys.path.pop(0)  # this folder, whose hydra_plugins are tests
    for name in IMPORTS[kind]:
        importlib.import_module(name)
    warm_up(kind)
    os.environ[ADDRESS] = address
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(50)
    gc.freeze()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        listener.close()
        job, descriptors = receive(connection)
        pid = os.fork()
        if pid == 0:
            connection.close()
            return become(job, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(b"%d\n" % pid)
        watch(connection, pid)


if __name__ == "__main__":
    script = serve(*sys.argv[1:])
    runpy.run_path(script, run_name="__main__")
