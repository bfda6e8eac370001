"""A scorer served over HTTP: on this machine only, unless there is a token."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.service.access import HOST, PORT, find_token, refuse_open_door, taken
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.scoring import Service
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work.runners import runners_of

if TYPE_CHECKING:
    import uvicorn

Announce = Callable[[str], None]
POLL = 0.01
CALL_SECONDS = 120.0
"""Of a scorer that is given no `timeout`: less than those who ask wait for an answer."""
IN_TIME = 0.8
"""The part of it in which a scorer that ends its calls by itself does so."""


def serve(
    spec: ScorerSpec,
    *,
    host: str = HOST,
    port: int = PORT,
    token: str | None = None,
    token_file: Path | None = None,
    limits: Limits | None = None,
    announce: Announce | None = None,
) -> None:
    """Serve a scorer until it is interrupted, with Ctrl-C or a signal to end.

    ``port`` 0 is any free one. The address is taken before the scorer is loaded, and answers when
    it is.
    """
    key = find_token(token, token_file)
    refuse_open_door(host, key)
    assembled = _assembler()
    spec = for_requests(spec)
    scorer = spec.load()
    with taken(host, port) as place:
        runners = runners_of(spec, scorer)
        service = Service(scorer, runners, limits or Limits(), spec.identity(), spec.timeout)
        try:
            asyncio.run(_run(service, assembled(service, key, host), place, announce or _say))
        except KeyboardInterrupt:  # how one ends it
            return
        finally:
            service.close()


def for_requests(spec: ScorerSpec) -> ScorerSpec:
    """With a server's times where none are given: less than those who ask have patience for."""
    if "timeout" not in spec.model_fields_set:
        spec = spec.model_copy(update={"timeout": CALL_SECONDS})
    known = plugins.scorer_settings(spec.name, spec.settings)
    if known is None or "call_seconds" not in type(known).model_fields:
        return spec
    settings = {"call_seconds": IN_TIME * spec.timeout, **spec.settings}
    return spec.model_copy(update={"settings": settings})


async def _run(
    service: Service, server: "uvicorn.Server", place: socket.socket, announce: Announce
) -> None:
    await service.load()
    serving = asyncio.create_task(server.serve(sockets=[place]))
    while not (server.started or serving.done()):
        await asyncio.sleep(POLL)
    if server.started:
        host, port = place.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scorer = service.scorer
        announce(f"{scorer.name} {scorer.version} is served at http://{shown}:{port}")
    await serving


def _say(text: str) -> None:
    print(text, flush=True)


def _assembler() -> "Callable[[Service, str | None, str], uvicorn.Server]":
    try:
        from flowopd.rewards.service.connections import assembled
    except ImportError as error:
        raise FlowOPDError(
            f"The server needs the package {error.name!r}: pip install 'flowopd[service]'."
        ) from None
    return assembled
