"""The explorer in a notebook: an anywidget with the same script, asking the kernel."""

from functools import cache
from typing import TYPE_CHECKING, Any

from apps.explorer.assets import script, start, style
from apps.explorer.live import Live
from apps.explorer.payload import Payload
from interp.errors import MnemoscopeError, ResultError

if TYPE_CHECKING:
    from anywidget import AnyWidget


@cache
def _classes() -> tuple[type["AnyWidget"], str]:
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise ResultError(
            'the explorer in a notebook needs anywidget: pip install "mnemoscope[app]"; '
            "or write one offline page: explore(result, export='page.html')"
        ) from None
    from plotly.offline import get_plotlyjs

    # plotly.js is a plain script that looks for a module loader: it finds this one
    plotly = (
        "const Plotly = (() => { const module = {exports: {}}, exports = module.exports;\n"
        f"{get_plotlyjs()}\n"
        "return module.exports.newPlot ? module.exports : globalThis.Plotly; })();"
    )
    module = "\n".join([plotly, script(), start("widget")])

    class ExplorerWidget(anywidget.AnyWidget):
        """The explorer; `state` is what is chosen, as in the address of the page."""

        _esm = module
        _css = style()
        payload = traitlets.Dict().tag(sync=True)
        state = traitlets.Unicode("").tag(sync=True)

    return ExplorerWidget, module


def widget(payload: Payload, *, live: Live | None = None, state: str = "") -> Any:
    """The explorer as a widget.

    Raises:
        ResultError: anywidget is not installed.
    """
    kind, _ = _classes()
    about = {**payload.as_plain(), "live": None if live is None else live.about()}
    made = kind(payload=about, state=state)

    def answer(_: Any, asked: Any, __: Any) -> None:
        reply: dict[str, Any] = {"id": asked.get("id")}
        try:
            if live is None:
                raise ResultError("no model is attached; explore(result, model=model)")
            reply["value"] = live.ask(str(asked.get("name")), asked.get("given") or {})
        except MnemoscopeError as error:
            reply["error"] = str(error)
        made.send(reply)

    made.on_msg(answer)
    return made
