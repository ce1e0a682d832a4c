"""The live explorer: what its server refuses, and what it answers, beside the model itself."""

import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from browsing import chromium, opened
from worlds import PROMPTS, world

from apps.explorer.live import Live
from apps.explorer.opening import explore
from apps.explorer.opening import opened as open_runs
from apps.explorer.payload import build
from apps.explorer.server import COOKIE, HEADER, make_app, new_token
from apps.explorer.widget import widget
from circuits.attention.desk import TrialDesk
from circuits.retrieval import scan
from interp.errors import MnemoscopeError, ResultError
from interp.sites import Head

ASKED = {**PROMPTS, "lengths": (96, 192), "depths": (0.2, 0.8), "n_haystacks": 1, "attention": 2}


@pytest.fixture(scope="module")
def model():
    return world("copy_content")[0]


@pytest.fixture(scope="module")
def run(model):
    return scan(model, **ASKED)


@pytest.fixture(scope="module")
def runs(run):
    return open_runs([run])


@pytest.fixture(scope="module")
def live(model, runs):
    return Live(model, runs)


@pytest.fixture(scope="module")
def client(runs, live):
    return make_app(build(runs), live=live).server.test_client()


def ask(client, name, given, **headers):
    return client.post(f"/ask/{name}", json=given, headers={HEADER: "1", **headers})


# -- who is answered --------------------------------------------------------------------------


def test_the_page_and_its_data_are_served(client, runs):
    assert b"explorer.js" in client.get("/").data
    assert client.get("/explorer.js").data.startswith(b"const Explorer")
    about = json.loads(client.get("/payload.json").data)
    assert about["runs"][0]["model"] == runs[0].result.provenance.model
    assert about["live"]["runs"] == ["r0"] and "zero" in about["live"]["ablations"]


def test_another_host_name_is_refused(client):
    for path in ("/", "/payload.json", "/explorer.js"):
        reply = client.get(path, headers={"Host": "evil.example:8050"})
        assert reply.status_code == 403 and b"evil.example" in reply.data


def test_a_question_of_another_site_is_refused(client, run):
    given = {"run": "r0", "trial": run.attention.trials[0].trial}
    assert client.post("/ask/trial", json=given).status_code == 403
    plain = client.post("/ask/trial", data=json.dumps(given), headers={HEADER: "1"})
    assert plain.status_code == 403
    assert ask(client, "trial", given).status_code == 200


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/assets/../../../etc/passwd",
                                  "/static/explorer.css/../../cli.py", "/result.json",
                                  "/%2e%2e/%2e%2e/etc/passwd"])  # fmt: skip
def test_no_path_of_a_request_is_read(client, path):
    reply = client.get(path)
    assert b"root:" not in reply.data and b"import typer" not in reply.data
    assert b'"provenance"' not in reply.data


def test_beyond_loopback_a_token_is_asked_for(runs):
    payload = build(runs)
    with pytest.raises(ResultError, match="needs a token"):
        make_app(payload, host="0.0.0.0")
    token = new_token()
    client = make_app(payload, host="0.0.0.0", token=token).server.test_client()
    for path in ("/", "/payload.json", "/payload.json?token=guess", "/_dash-layout"):
        assert client.get(path).status_code == 401
    client.set_cookie(COOKIE, "guess")
    assert client.get("/payload.json").status_code == 401
    first = client.get(f"/?token={token}")
    assert first.status_code == 302 and token not in first.headers["Location"]
    assert client.get("/payload.json").status_code == 200


def test_a_person_without_the_token_gets_a_page_that_says_so(runs):
    app = make_app(build(runs), host="0.0.0.0", token=new_token())
    reply = app.server.test_client().get("/", headers={"Accept": "text/html"})
    assert reply.status_code == 401 and reply.mimetype == "text/html"
    assert b"asks for its token" in reply.data and b"payload" not in reply.data


def test_other_sites_cannot_frame_it(client):
    assert client.get("/").headers["X-Frame-Options"] == "DENY"


# -- what is answered -------------------------------------------------------------------------


def test_answers_are_those_of_the_model(client, model, run):
    desk, trial = TrialDesk(model, run), run.attention.trials[0].trial
    best = run.top(1)[0]
    found = ask(client, "window", {"run": "r0", "trial": trial, "head": str(best),
                                   "zoom": [80, 120, 0, 60]}).get_json()  # fmt: skip
    _, _, z = desk.window(trial, best, [80, 120, 0, 60])
    assert np.allclose(found["z"], z, atol=2e-5)
    given = {"run": "r0", "trial": trial, "heads": [str(best)], "ablation": "zero",
             "scope": "decode", "draws": 3}  # fmt: skip
    found = ask(client, "whatif", given).get_json()
    truth = desk.what_if(trial, [best], how="zero", where="decode", draws=3)
    assert found["after"] == pytest.approx(truth.after, abs=1e-4)
    assert sorted(found["random"]) == pytest.approx(sorted(truth.random), abs=1e-4)
    assert len(found["looked"][0]) == run.shape[0] * run.shape[1]


BAD = [
    ("nothing", {}, "unknown question"),
    ("trial", {}, "did not make this run"),
    ("trial", {"run": "r9"}, "did not make this run"),
    ("trial", {"run": ["r0"]}, "did not make this run"),
    ("trial", {"run": "r0", "trial": "<script>"}, "trial"),
    ("window", {"run": "r0", "trial": None, "head": "L0H0", "zoom": [0, 1]}, "four numbers"),
    ("window", {"run": "r0", "trial": "x", "head": "zero", "zoom": [0, 1, 0, 1]}, "head"),
    ("window", {"run": "r0", "trial": "", "head": "L0H0", "zoom": [0, "1", 0, None]}, "four num"),
    ("whatif", {"run": "r0", "heads": []}, "no head is ticked"),
    ("whatif", {"run": "r0", "heads": ["L0H0"], "draws": 10**6}, "1 to 200"),
    ("whatif", {"run": "r0", "heads": ["L0H0"], "draws": "many"}, "1 to 200"),
    ("whatif", {"run": "r0", "heads": ["L0H0"], "ablation": "rm", "scope": "x"}, "ablation"),
]


@pytest.mark.parametrize(("name", "given", "why"), BAD, ids=str)
def test_bad_questions_get_one_line(client, name, given, why):
    reply = ask(client, name, given)
    assert reply.status_code == 422
    said = reply.get_json()["error"]
    assert why in said and "\n" not in said and "Traceback" not in said


@pytest.mark.parametrize("body", ["[1]", "null", "{", '"x"'])
def test_what_is_no_object_is_refused(client, body):
    reply = client.post(
        "/ask/trial", data=body, headers={HEADER: "1", "Content-Type": "application/json"}
    )
    assert reply.status_code == 400


def test_without_a_model_questions_say_so(runs):
    client = make_app(build(runs)).server.test_client()
    assert client.get("/payload.json").get_json()["live"] is None
    assert "--model" in ask(client, "trial", {"run": "r0"}).get_json()["error"]


def test_a_model_of_another_run_is_not_attached(runs):
    with pytest.raises(MnemoscopeError, match="not the model of this run"):
        Live(world("induction_pair")[0], runs)


# -- in a browser -----------------------------------------------------------------------------


@contextmanager
def serving(app):
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def test_a_person_ablates_reads_closer_and_opens_another_trial(browser, runs, live, model, run):
    desk, best = TrialDesk(model, run), run.top(1)[0]
    with (
        serving(make_app(build(runs), live=live)) as address,
        opened(browser, address, offline=False) as (page, watch),
    ):
        assert {u.split("/")[2] for u in watch.requests if u.startswith("http")} == {
            address.split("/")[2]
        }
        page.click(f"text=tick {best}")
        page.select_option("select[aria-label=ablation]", "zero")
        page.fill("input[aria-label='random sets']", "5")
        page.click("#panel-whatif .go")
        page.wait_for_selector("#panel-whatif .plot")
        trial = run.attention.trials[0].trial
        truth = desk.what_if(trial, [best], how="zero", where="decode", draws=5)
        said = page.inner_text("#panel-whatif").replace("−", "-")
        assert f"{truth.before:.2f} before, {truth.after:.2f} after" in said
        page.click("text=Compare ablated with plain")
        shown = page.eval_on_selector(
            "#panel-difference .plot", "p => p.data[0].z.map(r => Array.from(r))"
        )
        change = truth.looked[1] - truth.looked[0]
        known = ~np.isnan(change)
        assert np.allclose(np.array(shown, float)[known], change[known], atol=3e-5)
        page.click("[data-view=heads]")
        page.click("text=Whole trial")
        page.wait_for_selector("text=Read by the model")
        other = run.trials["trial"].iloc[-1]
        assert other not in run.attention.by_name
        box = page.locator("#panel-grid .plot .nsewdrag").first
        box.scroll_into_view_if_needed()
        place = box.bounding_box()
        page.mouse.click(place["x"] + 0.75 * place["width"], place["y"] + 0.75 * place["height"])
        page.wait_for_function(f"location.hash.includes('{other}')")
        rows = desk.rows(other)
        at = next(i for i, p in enumerate(rows.produced) if p)
        shown = page.locator("#panel-keys tbody td:nth-child(2)").all_inner_texts()
        keys = rows.keys[best.layer, best.head, at]
        assert [int(k) for k in shown] == keys[keys >= 0].tolist()
        assert watch.errors == []


def test_a_server_that_is_gone_is_told_in_a_line(browser, runs, live):
    with serving(make_app(build(runs), live=live)) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#explorer[data-ready]")
    page.click("text=tick the 5 best")
    page.click("#panel-whatif .go")
    page.wait_for_selector("text=the server does not answer")
    context.close()


WIDGET = """<!doctype html><link rel="icon" href="data:,"><div id="explorer"></div>
<script type="module">
import widget from "./widget.js";
const values = %s, heard = [];
const model = {
  get: (name) => values[name], set: (name, value) => { values[name] = value; },
  save_changes: () => {}, on: (name, call) => heard.push(call),
  send: (asked) => { window.asked = asked;
    heard.forEach((call) => call({id: asked.id, error: "the kernel says no"})); },
};
await widget.render({model, el: document.getElementById("explorer")});
window.values = values;
document.getElementById("explorer").dataset.ready = "yes";
</script>"""


def test_the_widget_draws_asks_its_kernel_and_keeps_its_state(browser, run, model, tmp_path):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    made = widget(build(open_runs([run])), live=Live(model, open_runs([run])))
    (tmp_path / "widget.js").write_text(type(made)._esm if isinstance(type(made)._esm, str)
                                        else made._esm, "utf-8")  # fmt: skip
    values = json.dumps({"payload": made.payload, "state": "head=L1H1"})
    (tmp_path / "page.html").write_text(WIDGET % values.replace("<", "\\u003c"), "utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/page.html"
        with opened(browser, address, offline=False) as (page, watch):
            assert page.locator("#panel-ranking tr.chosen").inner_text().split()[0] == "L1H1"
            page.click("text=tick L1H1")
            page.click("#panel-whatif .go")
            page.wait_for_selector("text=the kernel says no")
            assert page.evaluate("asked.name") == "whatif"
            assert "ticks=L1H1" in page.evaluate("values.state")
            assert watch.errors == []
    finally:
        server.shutdown()
        server.server_close()


def test_the_kernel_answers_a_widget(run, model):
    made, sent = explore(run, model=model), []
    made.send = lambda content, *_: sent.append(content)
    trial = run.attention.trials[0].trial
    made._handle_custom_msg({"id": "7", "name": "window", "given": {
        "run": "r0", "trial": trial, "head": "L0H0", "zoom": [0, 5, 0, 5]}}, [])  # fmt: skip
    made._handle_custom_msg({"id": "8", "name": "window", "given": {"run": "r0"}}, [])
    assert np.allclose(np.triu(sent[0]["value"]["z"], 1), 0) and sent[0]["id"] == "7"
    assert "four numbers" in sent[1]["error"]
    quiet = explore(run)
    quiet.send = lambda content, *_: sent.append(content)
    quiet._handle_custom_msg({"id": "9", "name": "window", "given": {}}, [])
    assert "no model is attached" in sent[2]["error"]
    assert Head.parse("L0H0") in model.spec.heads()
