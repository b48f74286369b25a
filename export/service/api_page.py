"""The parts of the OpenAPI schema that FastAPI cannot derive, and a page made from the schema without remote files."""

from html import escape
from typing import Any

ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "What is wrong, and what to do."},
        "request": {"type": "string", "description": "Id of the request in the service's log."},
    },
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR}}}


RESPONSES: dict[int | str, dict[str, Any]] = {
    401: _error("The service requires a token, and the request did not carry it."),
    421: _error("The Host header does not name this service."),
    500: _error("The service failed."),
}
SCAN_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "required": False,
            "schema": {"type": "string"},
            "description": "The file's name, if the body is not a form. Its suffix tells the format.",
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
        "description": "A `.nii`, `.nii.gz`, `.mgh` or `.mgz` scan, as the body itself or as the one file of a form.",
        "content": {
            "application/octet-stream": BINARY,
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"scan": BINARY["schema"]}, "required": ["scan"]}
            },
        },
    },
    "responses": {
        "200": {
            "description": "The enhanced scan. X-Upfield-Notes says what is doubtful about the scan that was sent.",
            "content": {
                "application/gzip": BINARY,
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": dict.fromkeys(("enhanced", "before"), BINARY["schema"])}
                },
            },
        },
        "400": _error("The form or the id is malformed."),
        "403": _error("The request came from another site's page."),
        "408": _error("The upload paused for too long."),
        "413": _error("The scan is too large: its body, its content without compression, or its number of voxels."),
        "422": _error("The scan cannot be used. The error is the one that `upfield enhance` prints."),
        "503": _error("Too many scans, or the service is in trouble. Retry-After says when to try again."),
        "504": _error("The scan was not done within the service's time limit."),
    },
}


def schema_page(schema: dict[str, Any]) -> str:
    """Return an OpenAPI schema as a page of plain HTML."""
    info = schema["info"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
        f"<title>{escape(info['title'])}: API</title>",
        "<link rel=stylesheet href=/page/page.css></head><body><main>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>",
        '<p>Schema: <a href="/openapi.json">/openapi.json</a>. In a browser: <a href="/">the page</a>.</p>',
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
    answers = [
        (status, answer["description"], ", ".join(answer.get("content", {})))
        for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(_table(("answer", "", "type"), answers))
    return "".join([*parts, "</section>"])


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"
