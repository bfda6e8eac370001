"""A chat server of the OpenAI kind that says what a test wants it to say."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Reply = Callable[["Asked"], Any]
"""What is replied: a text, a status with a body (and headers), or None to hang up."""


class Asked:
    """One request, with the caption of its record and its picture."""

    def __init__(self, number: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        self.number, self.body, self.headers = number, body, headers
        (message,) = body["messages"]
        image, text = message["content"]
        kind, _, data = image["image_url"]["url"].partition(";base64,")
        assert (message["role"], kind, text["type"]) == ("user", "data:image/png", "text")
        self.picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        self.text = str(text["text"])


class FakeOpenAI:
    def __init__(self, reply: Reply, models: list[str] | None) -> None:
        self.reply, self.models = reply, models
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            asked = Asked(len(self.asked), body, dict(handler.headers))
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        reply = self.reply(asked)
        with self.lock:
            self.at_once -= 1
        if reply is None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(reply, str):
            reply = 200, chat(reply)
        send(handler, *reply)


def chat(text: str | None, reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def send(
    handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with contextlib.suppress(ConnectionError):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


def slowly(seconds: float, text: str) -> str:
    time.sleep(seconds)
    return text


@contextlib.contextmanager
def fake_openai(reply: Reply, models: list[str] | None = None) -> Iterator[FakeOpenAI]:
    """A server at `url`, that knows of these models (None: it has no list of them)."""
    fake = FakeOpenAI(reply, models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/models" or fake.models is None:
                return send(self, 404, {"error": {"message": "nothing here"}})
            return send(self, 200, {"data": [{"id": model} for model in fake.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            fake.answer(self, body)

        def log_message(self, *arguments: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *arguments: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
