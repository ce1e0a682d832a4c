"""The explorer as a Dash app, served to this machine alone unless told otherwise.

A page that another site shows in the same browser must not be able to ask this server anything: the
host that a request names has to be ours (no DNS rebinding), questions are JSON with a header that
forms and other sites cannot send, and beyond the loopback address every request needs a token.
"""

import hmac
import json
import secrets
from typing import TYPE_CHECKING, Any

from apps.explorer.assets import script, start, style
from apps.explorer.live import Live
from apps.explorer.page import document
from apps.explorer.payload import Payload
from apps.html_parts import safe
from interp.errors import MnemoscopeError, ResultError

if TYPE_CHECKING:
    from dash import Dash
    from flask import Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADER = "X-Mnemoscope"
COOKIE = "mnemoscope_token"
LARGEST = 1_000_000
"""Bytes of a question at most."""


def make_app(
    payload: Payload,
    *,
    live: Live | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
    title: str = "mnemoscope explorer",
) -> "Dash":
    """The app, not yet running.

    Args:
        token: asked for with every request; needed beyond the loopback address.

    Raises:
        ResultError: Dash is not installed, or a host beyond loopback without a token.
    """
    try:
        from dash import Dash, html
    except ImportError:
        raise ResultError(
            'the explorer\'s server needs Dash: pip install "mnemoscope[app]"; '
            "or write one offline page: mnemoscope explore RUN --export page.html"
        ) from None
    if host not in LOOPBACK and not token:
        raise ResultError(f"serving on {host} needs a token, for others can reach it")
    app = Dash(__name__, title=title, assets_folder="static", assets_ignore=".*", update_title="")
    app.layout = html.Div(id="explorer", className="explorer")
    app.index_string = (
        '<!doctype html><html lang="en"><head>{%metas%}<meta name="viewport" '
        'content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        "<title>{%title%}</title>{%css%}<style>body { margin: 0; background: #f4f6f8; }</style>"
        f"<style>{style()}</style></head><body>"
        "{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer>"
        '<script src="plotly.js"></script><script src="explorer.js"></script></body></html>'
    )
    _guard(app.server, host, token)
    _routes(app.server, payload, live)
    return app


def _guard(server: Any, host: str, token: str | None) -> None:
    """Refuse what is not asked by our own page."""
    from flask import redirect, request

    @server.before_request
    def check() -> "Response | None":
        asked = request.host.rsplit(":", 1)[0].strip("[]")
        if host in LOOPBACK and asked not in LOOPBACK:
            return _refusal(f"this server answers to {', '.join(LOOPBACK)}, not to {asked}", 403)
        if token is None:
            return None
        given = request.args.get("token", "")
        if given and hmac.compare_digest(given, token):
            answer = redirect(request.path)  # the address is shown and shared: keep it clean
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            return answer  # type: ignore[return-value]
        if hmac.compare_digest(request.cookies.get(COOKIE, ""), token):
            return None
        return _refusal("this explorer asks for its token: open the address that was printed", 401)

    @server.after_request
    def headers(response: "Response") -> "Response":
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _routes(server: Any, payload: Payload, live: Live | None) -> None:
    """Script, data, and questions; nothing here reads a path that a request names."""
    from flask import Response, request
    from plotly.offline import get_plotlyjs

    about = {**payload.as_plain(), "live": None if live is None else live.about()}
    text = json.dumps(about, ensure_ascii=False, allow_nan=False)

    def serve(path: str, body: str, kind: str) -> None:
        server.add_url_rule(f"/{path}", f"mnemoscope-{path}", lambda: Response(body, mimetype=kind))

    serve("payload.json", text, "application/json")
    serve("plotly.js", get_plotlyjs(), "text/javascript")
    serve("explorer.js", script() + start("server"), "text/javascript")

    @server.errorhandler(500)
    def broken(error: Any) -> Any:
        cause = getattr(error, "original_exception", error)
        return _refusal(f"{type(cause).__name__}: {cause}; this is a bug, see the terminal", 500)

    @server.post("/ask/<name>")
    def ask(name: str) -> Any:
        if request.headers.get(HEADER) != "1" or not request.is_json:
            return _refusal(f"questions are JSON with the header {HEADER}", 403)
        if (request.content_length or 0) > LARGEST:
            return _refusal("this question is too long", 413)
        if live is None:
            return _refusal("no model is attached; start with --model NAME", 409)
        given = request.get_json(silent=True)
        if not isinstance(given, dict):
            return _refusal("a question is a JSON object", 400)
        try:
            return live.ask(name, given)
        except MnemoscopeError as error:
            return _refusal(str(error), 422)


def _refusal(why: str, status: int) -> Any:
    """One line of why not: JSON for the script, a page for a person who opened an address."""
    from flask import Response, request

    if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
        text = f"<h1>This page cannot be shown</h1><p>{safe(why)}</p>"
        page = document("mnemoscope explorer", head="", body=f'<div class="explorer">{text}</div>')
        return Response(page, status=status, mimetype="text/html")
    return Response(json.dumps({"error": why}), status=status, mimetype="application/json")


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_urlsafe(24)
