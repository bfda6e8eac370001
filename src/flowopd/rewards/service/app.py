"""The paths of a server of scores."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from flowopd import __version__
from flowopd.rewards.service.gate import LOCALHOST, Gate, GoneError, RefusedError, refusal
from flowopd.rewards.service.scoring import Service
from flowopd.rewards.service.wire import (
    AboutReply,
    CheckReply,
    Health,
    Refusal,
    ScoreReply,
    ScoreRequest,
)

COMPONENTS = "#/components/schemas/"
WORDS = {
    400: "This is no valid HTTP request.",
    401: "The token is missing or wrong.",
    403: "A server without a token is called by a name of its machine, and by no web page.",
    408: "The request came too slowly.",
    413: "The request is too large.",
    415: "The body is not JSON.",
    422: "The body says nothing that can be scored.",
    429: "There is too much to do; come back after `Retry-After` seconds.",
    503: "The scorer does not come back.",
}
HUNG_UP = 499
Body = dict[str, Any]


def _answers(*statuses: int) -> dict[int | str, Body]:
    return {status: {"model": Refusal, "description": WORDS[status]} for status in statuses}


def application(service: Service, token: str | None, name: str = LOCALHOST) -> Gate:
    """The ASGI application of a service, with the gate before it."""
    app = FastAPI(
        title="flowopd reward",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_errors(app)
    _add_paths(app, service)
    app.openapi = _schema(app, token is not None)  # type: ignore[method-assign]
    return Gate(app, service.limits, token, service.counters, name)


def _add_paths(app: FastAPI, service: Service) -> None:
    body = {"required": True, "content": {"application/json": {"schema": _schema_of_request()}}}

    @app.post(
        "/score",
        response_model=ScoreReply,
        responses=_answers(401, 403, 408, 413, 415, 422, 429, 503),
        openapi_extra={"requestBody": body},
    )
    async def score(request: Request) -> Response:
        """Score pictures, each with the record of its prompt."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(
                415, "The body has to be JSON, with 'Content-Type: application/json'."
            )
        reply = await service.score(await request.body(), request.is_disconnected)
        return Response(reply, media_type="application/json")

    @app.post("/check", response_model=CheckReply, responses=_answers(401, 403, 408, 413, 429, 503))
    async def check() -> Response:
        """Let the scorer check itself by pictures of known answer."""
        return Response(await service.check(), media_type="application/json")

    @app.get("/about", response_model=AboutReply, responses=_answers(401, 403, 408, 413))
    async def about() -> AboutReply:
        """What scorer this is, with its metrics and the limits of a request."""
        return service.about

    @app.get("/healthz", response_model=Health, responses=_answers(403, 408, 413, 503))
    async def healthz() -> Health:
        """Whether the scorer is ready for work."""
        service.refuse_if_unhealthy()
        return Health(status="ok")

    text: dict[int | str, Body] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics", response_class=Response, responses={**text, **_answers(401, 403, 408, 413)}
    )
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Every refusal has the same body."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return Response(
            refusal(str(error)),
            status_code=error.status,
            headers=error.headers,
            media_type="application/json",
        )

    @app.exception_handler(GoneError)
    async def unheard(request: Request, error: Exception) -> Response:
        return Response(status_code=HUNG_UP)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = f"{request.method} {request.url.path}: {error.detail}."
        return Response(
            refusal(sentence),
            status_code=error.status_code,
            headers=error.headers,
            media_type="application/json",
        )


def _schema_of_request() -> Body:
    return {"$ref": COMPONENTS + ScoreRequest.__name__}


def _schema(app: FastAPI, secured: bool) -> Callable[[], Body]:
    """The OpenAPI schema, with the request's body that the server reads by itself."""

    def schema() -> Body:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            parts = found["components"]["schemas"]
            request = ScoreRequest.model_json_schema(ref_template=COMPONENTS + "{model}")
            parts.update(request.pop("$defs"))
            parts[ScoreRequest.__name__] = request
            if secured:
                found["components"]["securitySchemes"] = {
                    "token": {"type": "http", "scheme": "bearer"}
                }
                found["security"] = [{"token": []}]
                found["paths"]["/healthz"]["get"]["security"] = []
            app.openapi_schema = found
        return app.openapi_schema

    return schema
