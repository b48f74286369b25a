"""Parts of the OpenAPI schema that FastAPI cannot derive, and an HTML page of the schema that loads no remote files."""

from html import escape
from typing import Any

from upfield.imaging.contrast import SHAPE

ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "The problem and the remedy."},
        "request": {"type": "string", "description": "Id of the request, as written in the service's log."},
    },
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR}}}


RESPONSES: dict[int | str, dict[str, Any]] = {
    401: _error("The token is missing or wrong."),
    421: _error("The host name of the request is not accepted."),
    500: _error("An internal error occurred in the service."),
}
PROGRESS: dict[str, Any] = {
    "parameters": [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "description": "The id that was sent with the scan.",
        }
    ],
    "responses": {"404": _error("No scan with this id is being processed.")},
}
READY: dict[str, Any] = {"responses": {"503": _error("No replica is ready. Retry-After says when to try again.")}}
METRICS: dict[str, Any] = {
    "responses": {
        "200": {"description": "The counters.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    }
}
SCAN_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "required": False,
            "schema": {"type": "string"},
            "description": "File name, if the body is not a form. The content determines the format, not the suffix.",
        },
        {
            "name": "contrast",
            "in": "query",
            "required": False,
            "schema": {"type": "string", "pattern": SHAPE.pattern},
            "description": "The scan's contrast, such as T1w, if its name does not state it. A form may state it too.",
        },
        {
            "name": "id",
            "in": "query",
            "required": False,
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "description": "32 random hexadecimal digits, for use with /progress/{id}.",
        },
    ],
    "requestBody": {
        "required": True,
        "description": "A `.nii`, `.nii.gz`, `.mgh` or `.mgz` scan, as the request body or as the only file of a form. "
        "The body may have the Content-Encoding gzip or deflate.",
        "content": {
            "application/octet-stream": BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"scan": BINARY["schema"], "contrast": {"type": "string"}},
                    "required": ["scan"],
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "The enhanced scan. The header X-Upfield-Notes lists doubts about the uploaded scan.",
            "content": {
                "application/gzip": BINARY,
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": dict.fromkeys(("enhanced", "before"), BINARY["schema"])}
                },
            },
        },
        "400": _error("The form, the id or the compressed body is malformed."),
        "403": _error("The request came from another site's page."),
        "408": _error("The upload paused for too long."),
        "413": _error("The upload, its decompressed content, or its number of voxels exceeds the limit."),
        "415": _error("The Content-Encoding is neither gzip nor deflate. The header Accept-Encoding names both."),
        "422": _error("The scan cannot be used. The error message is that of `upfield enhance`."),
        "503": _error("The queue is full, or no replica works at the moment. Retry-After says when to try again."),
        "504": _error("The scan was not finished within the service's time limit."),
    },
}


def schema_page(schema: dict[str, Any]) -> str:
    """Return an HTML page that describes an OpenAPI schema."""
    info = schema["info"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
        f"<title>{escape(info['title'])}: API</title>",
        "<link rel=stylesheet href=page/page.css></head><body><main>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>",
        '<p>Schema: <a href="openapi.json">openapi.json</a>. In the browser: <a href="./">enhance a scan</a>.</p>',
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    return "".join([*parts, "</main></body></html>"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<section class=operation><h2><code>{method.upper()} {escape(path)}</code></h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in operation.get("description", "").split("\n\n") if text]
    if rows := [(p["name"], p["in"], p.get("description", "")) for p in operation.get("parameters", [])]:
        parts.append(_table(("parameter", "in", ""), rows))
    if body := operation.get("requestBody"):
        parts.append(_table(("body", ""), [(kind, body.get("description", "")) for kind in body["content"]]))
    responses = [
        (status, response["description"], ", ".join(response.get("content", {})))
        for status, response in sorted(operation["responses"].items())
    ]
    parts.append(_table(("response", "", "type"), responses))
    return "".join([*parts, "</section>"])


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"
