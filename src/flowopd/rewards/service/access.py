"""Who may ask a server of scores: the token, and the address that is open to others or not."""

import ipaddress
import os
import socket
from pathlib import Path

from flowopd.errors import FlowOPDError

HOST, PORT = "127.0.0.1", 8100
TOKEN = "FLOWOPD_REWARD_TOKEN"
"""The environment's variable with the token, for the server and for those who ask it."""
SHORTEST = 16


def find_token(token: str | None, token_file: Path | None) -> str | None:
    """The token that was given, that a file holds, or that the environment has."""
    if token is not None and token_file is not None:
        raise FlowOPDError(
            "There is a token, and a file with a token (--token, --token-file); give one of them."
        )
    if token is None and token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FlowOPDError(f"The token file {token_file} cannot be read: {error}.") from None
        if not token:
            raise FlowOPDError(f"The token file {token_file} is empty.")
    if token is None:
        token = os.environ.get(TOKEN) or None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise FlowOPDError("A token is of ASCII letters, digits and signs, without spaces.")
    if token == "":
        raise FlowOPDError("The token is empty; leave it out, or give one.")
    return token


def refuse_open_door(host: str, token: str | None) -> None:
    """Beyond this machine only those are served who know a token that cannot be guessed."""
    if _is_loopback(host):
        return
    hint = f"give one with --token-file or in {TOKEN} (for example of `openssl rand -hex 24`)"
    if token is None:
        raise FlowOPDError(
            f"{host} can be reached from other machines, so that the server needs a token: {hint}, "
            f"or serve at {HOST}."
        )
    if len(token) < SHORTEST:
        raise FlowOPDError(
            f"The token has {len(token)} characters; beyond this machine it needs {SHORTEST} or "
            f"more: {hint}."
        )


def taken(host: str, port: int) -> socket.socket:
    """The address, bound and not yet listened at."""
    if not 0 <= port <= 65535:
        raise FlowOPDError(f"The port {port} is none; they go from 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        place = socket.socket(family, kind, protocol)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except (OSError, UnicodeError) as error:
        raise FlowOPDError(f"{host}:{port} is no address to serve at: {error}.") from None
    try:
        place.bind(address)
    except OSError as error:
        place.close()
        raise FlowOPDError(
            f"{host}:{port} cannot be served at: {error.strerror}. "
            "Choose another --port, or 0 for any free one."
        ) from None
    return place


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise FlowOPDError(f"{host} is no address to serve at: {error}.") from None
    return all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)
