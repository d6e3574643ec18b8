"""The document that describes the HTTP interface, for programs and for people. It tells of no event: no key is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files
from typing import Any

from flask import Flask, Response
from jinja2 import Environment
from markupsafe import Markup, escape

from cassata.service import openapi
from cassata.service.answers import content
from cassata.service.auth import Gate

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page is one file: it loads nothing, and runs nothing."""


class Documentation:
    """The routes to the document of one application."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def register(self, gate: Gate) -> None:
        gate.leave_open(self._app, "/openapi.json", self.openapi)
        gate.leave_open(self._app, "/docs", self.docs)

    def openapi(self) -> Response:
        return content(self._json, "application/json")

    def docs(self) -> Response:
        answer = content(self._page, "text/html; charset=utf-8")
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    @cached_property
    def _json(self) -> bytes:
        return written(openapi.document(self._app)).encode()

    @cached_property
    def _page(self) -> bytes:
        return page(openapi.document(self._app)).encode()


def written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def page(document: dict[str, Any]) -> str:
    """Write the document as one HTML page, that needs no other file and no script."""
    template = files("cassata.service").joinpath("openapi.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": _kind, "example": _example, "name": _name, "marked": _marked}
    return environment.from_string(template).render(document=document, groups=list(_groups(document)))


def _groups(document: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
    """Yield the tags, each with its operations as method, path and what is said of them."""
    for tag in document["tags"]:
        yield (
            tag["name"],
            [
                (method.upper(), path, operation)
                for path, operations in document["paths"].items()
                for method, operation in operations.items()
                if tag["name"] in operation["tags"]
            ],
        )


def _marked(words: str | None) -> Markup:
    """Show what stands between backticks as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate((words or "").split("`"))
    )


def _name(schema: dict[str, Any]) -> str | None:
    """Return the name of the schema that is meant, if it has one."""
    for candidate in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if "$ref" in candidate:
            return str(candidate["$ref"]).rsplit("/", 1)[1]
    return None


def _kind(schema: dict[str, Any]) -> str:
    """Say of what type a value is, and within what range."""
    types = schema.get("type", "object" if "$ref" in schema else [])
    words = " or ".join([types] if isinstance(types, str) else types) or "anything"
    if "anyOf" in schema and not schema.get("type"):
        words = " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        words += ": " + ", ".join(str(value) for value in schema["enum"] if value is not None)
    if "const" in schema:
        words += f": {schema['const']}"
    bounds = [f"{sign} {schema[key]:,}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    if "maxLength" in schema:
        bounds.append(f"up to {schema['maxLength']:,} characters")
    if "maxItems" in schema:
        bounds.append(f"up to {schema['maxItems']:,} items")
    if "default" in schema:
        bounds.append(f"default {schema['default']}")
    return ", ".join([words, *bounds])


def _example(schema: dict[str, Any], document: dict[str, Any]) -> str | None:
    """Return the first example of a schema, as JSON."""
    name = _name(schema)
    found = (document["components"]["schemas"][name] if name else schema).get("examples")
    return json.dumps(found[0], indent=2, ensure_ascii=False) if found else None
