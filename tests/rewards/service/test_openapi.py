"""The schema of the server: whole, true to what is answered, and the same with a token."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Exact, ask, pictures, records, served

from flowopd.rewards.service.wire import AboutReply, ScoreReply, ScoreRequest, request_body

KEY = "a-token-of-24-characters"
RIGHT = {"Authorization": f"Bearer {KEY}"}
BESIDE = Path(sys.executable).parent
SCHEMATHESIS = shutil.which("st", path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Exact(), token=KEY) as address:
        yield address


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    status, found = ask(url, "GET", "/openapi.json", headers=RIGHT)
    assert status == 200
    return found


def nodes(tree: Any) -> Iterator[Any]:
    yield tree
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for child in children:
        yield from nodes(child)


def test_every_reference_leads_somewhere(schema: Any) -> None:
    references = [
        node["$ref"] for node in nodes(schema) if isinstance(node, dict) and "$ref" in node
    ]
    assert references
    for reference in references:
        target = schema
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]
        assert isinstance(target, dict)


def test_every_path_says_what_it_takes_and_answers(schema: Any) -> None:
    assert schema["openapi"].startswith("3.1")
    assert set(schema["paths"]) == {"/score", "/check", "/about", "/healthz", "/metrics"}
    operations = [(path, way) for path, ways in schema["paths"].items() for way in ways.values()]
    for path, way in operations:
        assert way["description"]
        codes = {int(code) for code in way["responses"]}
        assert {200, 403, 408, 413} <= codes
        assert (401 in codes) is (path != "/healthz")
        for code, answer in way["responses"].items():
            kind = "text/plain" if (path, code) == ("/metrics", "200") else "application/json"
            assert list(answer["content"]) == [kind]
    body = schema["paths"]["/score"]["post"]["requestBody"]
    assert body["required"]
    assert body["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ScoreRequest"
    }


def test_the_token_is_part_of_it_only_if_there_is_one(schema: Any) -> None:
    assert schema["security"] == [{"token": []}]
    assert schema["paths"]["/healthz"]["get"]["security"] == []
    with served(Exact()) as address:
        _, plain = ask(address, "GET", "/openapi.json")
    assert "security" not in plain
    assert set(plain["paths"]) == set(schema["paths"])


def test_requests_and_answers_are_as_it_says(url: str) -> None:
    body = request_body(pictures(2), records(2))
    ScoreRequest.model_validate_json(body)
    status, reply = ask(url, "POST", "/score", body, RIGHT)
    assert status == 200
    ScoreReply.model_validate(reply)
    AboutReply.model_validate(ask(url, "GET", "/about", headers=RIGHT)[1])


@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed")
def test_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    assert SCHEMATHESIS is not None
    command = [SCHEMATHESIS, "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "drawn_images",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    options = ["--seed", "1", "-n", "25", "--continue-on-failure"]
    done = subprocess.run(
        [*command, *options], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
