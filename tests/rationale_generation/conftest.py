"""An HTTP server in a thread, whose replies are scripted."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEY = "sk-test/0123456789abcdef"


class ScriptedEndpoint:
    """Answers with `script(body, count)`, where `count` is the number of earlier requests with the same prompt.

    A script returns the text of an answer, or a dictionary with `status`, `headers`, `raw`, `delay`, `drop`, `choice`.
    """

    def __init__(self):
        self.script = lambda body, count: "A reason. So the answer is (a) yes."
        self.models_status = 200
        self.bodies = []
        self.headers = []
        self._guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.headers.append(dict(self.headers))
                self._send(outer.models_status, b'{"data": []}', {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body["path"] = self.path
                with outer._guard:
                    count = sum(prompt_of(one) == prompt_of(body) for one in outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                scripted = outer.script(body, count)
                scripted = {"text": scripted} if isinstance(scripted, str) else scripted
                time.sleep(scripted.get("delay", 0))
                if scripted.get("drop"):
                    self.close_connection = True
                    return
                raw = scripted.get("raw")
                if raw is None:
                    raw = json.dumps(reply(body, scripted)).encode()
                self._send(scripted.get("status", 200), raw, scripted.get("headers", {}))

            def _send(self, status, raw, headers):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def prompts(self):
        return [prompt_of(body) for body in self.bodies]


def prompt_of(body):
    """The last question of a request, chat or completion."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return re.findall(r"Q: (.*)", text)[-1]


def reply(body, scripted):
    choice = {"finish_reason": scripted.get("finish", "stop"), **scripted.get("choice", {})}
    if "messages" in body:
        choice["message"] = {"role": "assistant", "content": scripted.get("text")}
    else:
        choice["text"] = scripted.get("text")
    return {"choices": [choice], "usage": scripted.get("usage", {"prompt_tokens": 10, "completion_tokens": 3})}


@pytest.fixture
def endpoint():
    server = ScriptedEndpoint()
    yield server
    server.close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY
