"""The pages of a server for people: what it is, and what it answers. They load and run nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learnkit.report.document import Code, Document, Paragraph, Section, Span, Table, pairs

# Styles are in the page, also at its elements; nothing else is loaded, run, framed or sent
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    # of these three default-src says nothing
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_SHOWN = 100  # classes of a long list


def front_page(about: Mapping[str, Any], *, address: str, takes_token: bool, learns: bool) -> bytes:
    """What is served, how to ask it, and where to read on.

    Args:
        about: facts to show; `classes` has a list of its own.
        address: of the server, as the browser knows it.
        takes_token: whether predicting takes a token.
        learns: whether the model can be taught.
    """
    header = " -H 'Authorization: Bearer TOKEN'" if takes_token else ""
    lines = [
        f"curl{header} -F image=@a.jpg {address}/predict",
        f"curl{header} -H 'Accept: text/plain' --data-binary @a.jpg {address}/predict",
    ]
    if learns:
        teacher = "curl -H 'Authorization: Bearer TOKEN'"
        lines.append(f"{teacher} -F image=@a.jpg -F label=new {address}/extend")
        lines.append(f"{teacher} -X POST {address}/undo")
    more = Paragraph(
        (
            "Requests and answers: ",
            Span("docs", "link"),
            "; for programs: ",
            Span("openapi.json", "link"),
            "; at work: ",
            Span("health", "link"),
            ", ",
            Span("ready", "link"),
            ", ",
            Span("metrics", "link"),
            ".",
        )
    )
    hello = Paragraph("A server that says what is on an image: send one, and it names its class.")
    facts = {name: value for name, value in about.items() if name != "classes"}
    parts = {
        "": Document([hello, pairs(facts), more]),
        "Classes": Document([_classes(about["classes"])]) if "classes" in about else None,
        "Ask": Document([Code("\n".join(lines), "sh")]),
    }
    shown = {heading: one for heading, one in parts.items() if one is not None}
    return _page("learnkit", shown)


def _classes(names: Sequence[str]) -> Paragraph:
    if not names:
        return Paragraph("none yet; the model has to be taught some")
    pieces: list[Any] = []
    for name in names[:_SHOWN]:
        pieces += [", ", Span(name, "strong")]
    more = f", and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return Paragraph((*pieces[1:], more))


def docs_page(document: Mapping[str, Any]) -> bytes:
    """What can be asked and what is answered then, as an OpenAPI document has it."""
    parts = {"": Document([Paragraph(("The same for programs: ", Span("openapi.json", "link")))])}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts[f"{method.upper()} {path}"] = Document(_operation_blocks(operation))
    schemas = document["components"]["schemas"]
    parts["Answers"] = Document(
        [Section(name, [_entries(schema)], is_open=False) for name, schema in schemas.items()]
    )
    return _page("learnkit over HTTP", parts)


def _page(title: str, parts: Mapping[str, Document]) -> bytes:
    from learnkit.report.html import as_page  # jinja2 is imported for the first page

    return as_page(title, parts).encode()


def _operation_blocks(operation: Mapping[str, Any]) -> list[Any]:
    tokens = [name for one in operation["security"] for name in one]
    needs = f"Takes the token of: {', '.join(tokens)}." if tokens else "Takes no token."
    bodies = operation.get("requestBody", {}).get("content", {})
    fields = ", ".join(one["name"] for one in operation["parameters"])
    rows = [
        [status, response["description"], ", ".join(map(_title, response["content"].values()))]
        for status, response in sorted(operation["responses"].items())
    ]
    said = [Paragraph(operation["summary"]), Paragraph(operation["description"])]
    sent = [Paragraph(f"Send: {', '.join(bodies)}.")] if bodies else []
    named = [Paragraph(f"In the address or beside the images: {fields}.")] if fields else []
    return [*said, Paragraph(needs), *sent, *named, Table(rows, ("status", "when", "answer"))]


def _entries(schema: Mapping[str, Any]) -> Table:
    """The entries of an object, which of them may be missing, and what they are."""
    required = schema.get("required", ())
    rows = [
        [name, "" if name in required else "may be missing", _title({"schema": one})]
        for name, one in schema.get("properties", {}).items()
    ]
    return Table(rows or [[_title({"schema": schema})]])


def _title(content: Mapping[str, Any]) -> str:
    """A schema in a few words.

    >>> _title({"schema": {"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/A"}]}})
    'string or A'
    """
    schema = content["schema"]
    if "anyOf" in schema:
        return " or ".join(_title({"schema": one}) for one in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " or ".join(map(repr, schema.get("enum", [schema.get("const")])))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if kinds == ["array"]:
        return f"list of {_title({'schema': schema['items']})}"
    return " or ".join(kinds)
