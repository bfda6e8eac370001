"""Who may ask a server, and where it may be: on this machine, or with a token that holds."""

import socket
from pathlib import Path

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.service import server
from flowopd.rewards.service.access import TOKEN, find_token, refuse_open_door, taken
from flowopd.rewards.settings import ScorerSpec

LONG = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)


class TestTokens:
    def test_come_from_the_option_the_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "token"
        file.write_text("from-a-file\n")
        assert find_token(None, None) is None
        monkeypatch.setenv(TOKEN, "from-the-environment")
        assert find_token(None, None) == "from-the-environment"
        assert find_token(None, file) == "from-a-file"
        assert find_token("given", None) == "given"
        with pytest.raises(FlowOPDError, match="give one of them"):
            find_token("given", file)
        monkeypatch.setenv(TOKEN, "")
        assert find_token(None, None) is None

    @pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ä"])
    def test_are_of_plain_letters(self, token: str) -> None:
        with pytest.raises(FlowOPDError, match="token is"):
            find_token(token, None)

    def test_in_files_are_there(self, tmp_path: Path) -> None:
        with pytest.raises(FlowOPDError, match="cannot be read"):
            find_token(None, tmp_path / "none")
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(FlowOPDError, match="is empty"):
            find_token(None, tmp_path / "empty")


class TestAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "::1"])
    def test_of_this_machine_need_no_token(self, host: str) -> None:
        refuse_open_door(host, None)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
    def test_of_others_need_one_that_is_long(self, host: str) -> None:
        with pytest.raises(FlowOPDError, match="needs a token"):
            refuse_open_door(host, None)
        with pytest.raises(FlowOPDError, match="has 15 characters"):
            refuse_open_door(host, LONG[1:])
        refuse_open_door(host, LONG)

    def test_that_are_taken_are_said_to_be(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as place:
            port = place.getsockname()[1]
            with pytest.raises(FlowOPDError, match=f"127.0.0.1:{port} cannot be served at"):
                taken("127.0.0.1", port)

    @pytest.mark.parametrize(
        ("host", "port", "sentence"),
        [("127.0.0.1", 70_000, "The port 70000 is none"), ("a..b", 80, "no address to serve at")],
    )
    def test_that_are_none_are_said_to_be(self, host: str, port: int, sentence: str) -> None:
        with pytest.raises(FlowOPDError, match=sentence):
            taken(host, port)


def test_a_server_is_refused_before_the_scorer_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(ScorerSpec, "load", lambda spec: loaded.append(spec))
    with pytest.raises(FlowOPDError, match="needs a token"):
        server.serve(ScorerSpec(name="jpeg"), host="0.0.0.0", port=0)
    assert loaded == []


def test_without_its_packages_a_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "flowopd.rewards.service.connections", raising=False)
    with pytest.raises(FlowOPDError, match=r"pip install 'flowopd\[service\]'"):
        server.serve(ScorerSpec(name="jpeg"), port=0)
