"""The web application: its routes and its middleware."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from upfield.common.html_page import VIEWER
from upfield.export.configuration import ServeConfig
from upfield.export.service.access import AccessMiddleware
from upfield.export.service.api_page import METRICS, PROGRESS, READY, RESPONSES, SCAN_BODY, schema_page
from upfield.export.service.counters import Counters
from upfield.export.service.errors import RefusedError, error_response
from upfield.export.service.middleware import RequestMiddleware
from upfield.export.service.scan_requests.enhancement import Engine
from upfield.export.service.scan_requests.scan_handler import ScanHandler

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "page.css": ("text/css", PAGE),
    "page.js": ("text/javascript", PAGE),
    "nifti.js": ("text/javascript", PAGE),
    "viewer.js": ("text/javascript", VIEWER.parent),
}


def build_app(
    config: ServeConfig, engine: Engine, model_info: dict[str, Any], counters: Counters, token: str | None, folder: Path
) -> FastAPI:
    """Build the web application.

    Args:
        config: the service's configuration.
        engine: restores slices.
        model_info: description of the model, which `/model` sends.
        counters: counters of requests and batches.
        token: token that requests must carry; None if they need none.
        folder: folder for uploads.
    """
    handler = ScanHandler(config, engine, folder)
    counters.watch(handler.queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(handler.close)

    app = FastAPI(
        title="upfield",
        summary="Enhance portable 64 mT brain MRI. For research, not for diagnosis.",
        version=model_info["versions"]["upfield"],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=RESPONSES,
        # Starlette's redirects to addresses with or without a last slash would leave out a path that a proxy removed.
        redirect_slashes=False,
        # Relative to the schema's own address, so that it is right below any path. FastAPI would add `root_path`, which
        # is unknown if a proxy removes it.
        servers=[{"url": "."}],
        root_path_in_servers=False,
    )
    # The middleware that is added last is the outermost.
    app.add_middleware(AccessMiddleware, config=config, token=token)
    app.add_middleware(RequestMiddleware, config=config, counters=counters)
    # This handler receives only routing errors, such as an unknown path. RequestMiddleware turns the service's own
    # errors into responses.
    app.add_exception_handler(HTTPException, _respond_to_http_error)
    _add_scan_routes(app, handler)
    _add_monitoring_routes(app, engine, model_info, counters)
    _add_pages(app)
    return app


async def _respond_to_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    root = request.scope.get("root_path", "")
    if root and error.status_code == 404 and request.scope["path"] == root:
        # The page's relative addresses need the last slash.
        return RedirectResponse(f"{root.rpartition('/')[2]}/")
    refusal = RefusedError(error.status_code, f"{error.detail}. See /docs.")
    response = error_response(refusal, request.state.request_id)
    response.headers.update(error.headers or {})
    return response


def _add_scan_routes(app: FastAPI, handler: ScanHandler) -> None:
    @app.post("/enhance", openapi_extra=SCAN_BODY, response_class=Response, tags=["scans"])
    async def enhance(request: Request) -> Response:
        """Enhance a scan: send a NIfTI or MGH file with one volume, and receive a `.nii.gz` file.

        The file is byte for byte the one that `upfield enhance` writes. With `Accept: multipart/form-data`, the
        response is a form with two files: `enhanced`, and `before`, which is the scan interpolated to the same voxels.
        """
        return await handler.handle(request)

    # Without a declared parameter, because FastAPI would document a status 422 that never occurs.
    @app.get("/progress/{id}", openapi_extra=PROGRESS, tags=["scans"])
    async def progress(http_request: Request) -> dict[str, Any]:
        """Report the step that the scan with this `id` is in, and how many slices are restored."""
        request = handler.requests.get(http_request.path_params["id"])
        if request is None:
            raise RefusedError(404, "No scan with this id is being processed. Use the id that was sent with the scan.")
        return {
            "state": request.progress.state,
            "position": handler.queue.position(request.progress),
            "slices_done": request.progress.slices_done,
            "num_slices": request.progress.num_slices,
        }


def _add_monitoring_routes(app: FastAPI, engine: Engine, model_info: dict[str, Any], counters: Counters) -> None:
    @app.get("/health", tags=["watching"])
    async def health() -> dict[str, str]:
        """Report that the service is alive."""
        return {"status": "alive"}

    @app.get("/ready", openapi_extra=READY, tags=["watching"])
    async def ready() -> dict[str, str]:
        """Report that a replica has loaded the model and responds; the status is 503 otherwise."""
        if not await engine.is_ready():
            raise RefusedError(503, "No replica is ready. Try again in 5 s.", 5)
        return {"status": "ready"}

    @app.get("/metrics", openapi_extra=METRICS, response_class=Response, tags=["watching"])
    async def metrics() -> Response:
        """Return the counters in Prometheus's text format."""
        return Response(counters.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/model", tags=["watching"])
    async def model() -> JSONResponse:
        """Describe the model: its metadata, its hash, and the execution provider that runs it."""
        return JSONResponse(model_info)


def _add_pages(app: FastAPI) -> None:
    async def index() -> HTMLResponse:
        return HTMLResponse((PAGE / "index.html").read_text(encoding="utf-8"))

    async def page_file(name: str) -> Response:
        if name not in PAGE_FILES:
            raise RefusedError(404, "There is no such file. Open the page at /.")
        media_type, folder = PAGE_FILES[name]
        return Response((folder / name).read_bytes(), media_type=media_type)

    async def docs() -> HTMLResponse:
        return HTMLResponse(schema_page(app.openapi()))

    for path, endpoint in (("/", index), ("/page/{name}", page_file), ("/docs", docs)):
        app.add_api_route(path, endpoint, include_in_schema=False)
