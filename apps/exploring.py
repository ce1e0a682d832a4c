"""Commands of the explorer: `explore` (live, or one offline page) and `bench explore`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Lines, show_figures
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Threads,
    command_line,
    interruptible,
    load,
)
from interp.errors import ResultError


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(interruptible(explore))
    bench.command("explore")(interruptible(bench_explore))


def explore(
    runs: Annotated[list[str], typer.Argument(help="Run folders: scan, validate, bind, graph.")],
    export: Annotated[
        Path | None, typer.Option(help="Write one offline page there, and serve nothing.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Attach the model that was scanned; 'same': the one a run names.")
    ] = "",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.")] = 8050,
    host: Annotated[str, typer.Option(help="Address; beyond 127.0.0.1 a token is asked for.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Look at runs: heads, their attention, needles, comparisons, binding, features."""
    from apps.explorer.opening import attach, named, opened
    from apps.explorer.payload import build

    lines = Lines(quiet=False)
    some = opened(runs)
    payload = build(some)
    for label, n in payload.left_out.items():
        lines.say(f"{label}: {n} more trials are in the folder; the page keeps its size")
    if export is not None:
        from apps.explorer.page import export as write

        path = write(payload, export, title=named(some))
        lines.say(f"page: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB, opens offline)")
        return
    if not 0 <= port <= 65535:
        raise ResultError(f"--port {port} is no port; give one from 0 to 65535")
    live = None
    if model:
        name = _same(some) if model == "same" else model
        loaded = load(name, device, dtype, None, None, threads)
        lines.say(f"model: {loaded.source.name} ({loaded.source.detail})")
        live = attach(loaded, some)
    _serve(payload, live, named(some), host, port, browser, lines)


def bench_explore(
    folder: Annotated[Path | None, typer.Argument(help="A scan; made up if none is named.")] = None,
    layers: Annotated[int, typer.Option(help="Layers of the made-up model.")] = 32,
    heads: Annotated[int, typer.Option(help="Its heads a layer.")] = 32,
    tokens: Annotated[int, typer.Option(help="Its longest context.")] = 32768,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the page of a large run: size, opening, clicks; beside whole patterns."""
    from apps.bench_explore import run

    figures = run(layers=layers, heads=heads, tokens=tokens, folder=folder)
    figures["command"] = command_line("bench explore")
    show_figures(figures, output, as_json=as_json)


def _same(runs: Any) -> str:
    """How the model of the first scan is loaded again."""
    for run in runs:
        if run.kind.name == "scan":
            found = str(run.result.provenance.reference)
            if not found:
                raise ResultError(f"{run.label} does not say how its model is loaded; name it")
            return found
    raise ResultError("no scan is open; only a scan's model can be attached")


def _serve(
    payload: Any, live: Any, title: str, host: str, port: int, browser: bool, lines: Lines
) -> None:
    import logging
    import webbrowser
    from threading import Timer

    from apps.explorer.server import LOOPBACK, make_app, new_token

    token = None if host in LOOPBACK else new_token()
    app = make_app(payload, live=live, host=host, token=token, title=title)
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    _check_free(host, port)
    server = make_server(host, port, app.server, threaded=True)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.server_port}/" + (f"?token={token}" if token else "")
    lines.say(f"explorer: {address}\nCtrl-C ends it")
    if browser:
        Timer(0.3, webbrowser.open, [address]).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        lines.say("ended")
    finally:
        server.server_close()


def _check_free(host: str, port: int) -> None:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultError(
            f"cannot serve on {host}:{port}: {reason}; name another --port, or 0 for a free one"
        ) from None
