"""uvicorn, its guarded connections, and the application of one scorer."""

import uvicorn

from flowopd.rewards.service.app import application
from flowopd.rewards.service.connections import LARGEST_HEADER, guarded
from flowopd.rewards.service.scoring import Service

IDLE_SECONDS, GRACE_SECONDS = 30, 10


def assembled(service: Service, token: str | None) -> uvicorn.Server:
    """A server that is not started yet."""
    config = uvicorn.Config(
        application(service, token),
        http=guarded(service.limits),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=LARGEST_HEADER,
    )
    return uvicorn.Server(config)
