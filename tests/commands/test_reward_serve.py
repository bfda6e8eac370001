"""`flowopd reward serve`: one command to serve a scorer, and one key to end it."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "flowopd", "reward", "serve", "jpeg"]
TOKEN = "0123456789abcdef0123"


def fetch(url: str, path: str, token: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(url + path)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_serves_until_it_is_interrupted() -> None:
    environment = {**os.environ, "FLOWOPD_REWARD_TOKEN": TOKEN}
    options = ["--port", "0", "--batch", "7", "--queue", "3", "--pixels", "1000", "--body", "9000"]
    process = subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("jpeg 1 is served at http://127.0.0.1:")
        url = line.split()[-1]
        assert fetch(url, "/healthz") == (200, {"status": "ok"})
        assert fetch(url, "/about")[0] == 401
        status, about = fetch(url, "/about", TOKEN)
        assert (status, about["name"]) == (200, "jpeg")
        assert about["limits"] == {"body": 9000, "batch": 7, "pixels": 1000, "queue": 3}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--host", "0.0.0.0", "--token", "short"], "has 5 characters"),
        (["--batch", "0"], "The key 'batch' is 0"),
        (["--port", "70000"], "The port 70000 is none"),
        (["colour=red"], "colour"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(options: list[str], sentence: str) -> None:
    environment = {key: value for key, value in os.environ.items() if "TOKEN" not in key}
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
