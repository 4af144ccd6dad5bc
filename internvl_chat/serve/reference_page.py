"""``/docs``: the interface as one page, which loads nothing from anywhere and can ask the model.

Pages of Swagger UI and the like load their scripts from another host: nothing comes of that on a
cluster, and elsewhere the host learns who looks. This one is written out of ``/openapi.json``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

Schema = dict[str, Any]

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1d1f23;
background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-top:1px solid #d5d8dd;
padding-top:1rem;overflow-wrap:anywhere}h3{font-size:1rem;margin-bottom:.3rem}
code,pre,textarea,input{font:14px/1.45 ui-monospace,monospace}
pre,textarea{background:#f4f5f7;border:1px solid #d5d8dd;padding:.6rem;overflow-x:auto;
box-sizing:border-box;width:100%;white-space:pre-wrap;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;
border-bottom:1px solid #e6e8eb}
td p{margin:0}td code{overflow-wrap:anywhere}a,b.verb{color:#0b5cad}
label{display:block;margin:.5rem 0}
button{font:inherit;padding:.3rem 1rem}
@media(prefers-color-scheme:dark){body{color:#e4e6ea;background:#17181b}
pre,textarea,input{background:#222428;color:inherit;border-color:#3a3d43}a,b.verb{color:#7db8f5}}
"""
_SCRIPT: Final = """
const shown = document.getElementById("shown");
document.getElementById("send").addEventListener("click", async () => {
  const head = {"Content-Type": "application/json"};
  const key = document.getElementById("key");
  if (key && key.value) head.Authorization = "Bearer " + key.value;
  shown.textContent = "…";
  try {
    const body = document.getElementById("body").value;
    const answer = await fetch("v1/chat/completions", {method: "POST", headers: head, body});
    shown.textContent = answer.status + "\\n";
    const reader = answer.body.getReader(), text = new TextDecoder();
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      shown.textContent += text.decode(value, {stream: true});
    }
  } catch (error) {
    shown.textContent = String(error);
  }
});
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE_HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(_STYLE)}; "
    f"script-src {_hash(_SCRIPT)}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""What a browser is told: nothing but this page's own style and script, nobody but this server."""


def reference_page(schema: Schema) -> str:
    """The page of a server.

    Args:
        schema: from :func:`internvl_chat.serve.openapi.openapi_schema`.
    """
    has_key = "securitySchemes" in schema["components"]
    info = schema["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>{_text(info['description'])}",
        _text(
            "The key of `--api-key` goes into the header `Authorization: Bearer KEY` of every "
            "request below `/v1`."
            if has_key
            else "No key is wanted."
        ),
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, item in schema["paths"].items():
        for verb in ("get", "post", "delete"):
            if verb in item:
                parts += _operation(path, verb, item[verb])
                if "requestBody" in item[verb]:
                    parts += _try(item[verb]["requestBody"], has_key)
    parts.append("<h1>Objects</h1>")
    for name, one in schema["components"]["schemas"].items():
        parts += _object(name, one)
    return "".join([*parts, f"<script>{_SCRIPT}</script></body></html>\n"])


def _text(text: str) -> str:
    """A paragraph; what stands between backquotes is code."""
    pieces = escape(text, quote=False).split("`")
    coded = (f"<code>{p}</code>" if number % 2 else p for number, p in enumerate(pieces))
    return f"<p>{''.join(coded)}</p>"


def _operation(path: str, verb: str, operation: Schema) -> Iterator[str]:
    yield f'<h2><b class="verb">{verb.upper()}</b> <code>{escape(path)}</code></h2>'
    yield _text(operation["summary"])
    yield '<div class="wide"><table><tr><th>status</th><th>with</th><th></th></tr>'
    for status, answer in operation["responses"].items():
        kinds = "<br>".join(
            f"{escape(kind)}: {_kind(content['schema'])}"
            for kind, content in answer.get("content", {}).items()
        )
        about = _text(answer["description"])
        yield f"<tr><td>{status}</td><td>{kinds}</td><td>{about}</td></tr>"
    yield "</table></div>"


def _try(body: Schema, has_key: bool) -> Iterator[str]:
    content = body["content"]["application/json"]
    yield f"<h3>Body: {_kind(content['schema'])}</h3>"
    yield f'<textarea id="body" rows="14">{escape(json.dumps(content["example"], indent=2))}'
    yield "</textarea>"
    if has_key:
        yield '<label>Key <input id="key" type="password" autocomplete="off"></label>'
    yield '<p><button id="send" type="button">Send</button></p><pre id="shown"></pre>'


def _object(name: str, schema: Schema) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}">{escape(name)}</h2>{_text(schema.get("description", ""))}'
    yield '<div class="wide"><table><tr><th>field</th><th>is</th><th></th></tr>'
    required = schema.get("required", [])
    for field, kind in schema.get("properties", {}).items():
        about = kind.get("description", "")
        if "default" in kind and kind["default"] is not None:
            about += f" By default `{json.dumps(kind['default'])}`."
        mark = "" if field in required else " <small>optional</small>"
        yield f"<tr><td><code>{escape(field)}</code>{mark}</td><td>{_kind(kind)}</td>"
        yield f"<td>{_text(about)}</td></tr>"
    yield "</table></div>"


def _kind(schema: Schema) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_kind(one) for one in schema[key])
    for key in ("const", "enum"):
        if key in schema:
            values = schema[key] if key == "enum" else [schema[key]]
            return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array" and "items" in schema:
        return f"list of {_kind(schema['items'])}{_bounds(schema)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    words = kind if isinstance(kind, list) else [kind]
    return escape(" or ".join(words)) + _bounds(schema)


def _bounds(schema: Schema) -> str:
    """Of numbers, lengths and lists: ``(0 to 2)``."""
    lowest = next((schema[k] for k in ("minimum", "minItems", "minLength") if k in schema), None)
    highest = next((schema[k] for k in ("maximum", "maxItems", "maxLength") if k in schema), None)
    if lowest is None and highest is None:
        return ""
    told = [f"from {lowest}"] if lowest is not None else []
    told += [f"to {highest}"] if highest is not None else []
    return f" ({' '.join(told)})"
