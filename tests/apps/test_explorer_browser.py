"""The explorer as a person uses it, in a headless browser, from saved runs with the network cut."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from browsing import chromium, opened
from worlds import PROMPTS, world

from apps.explorer.opening import explore
from circuits.attention.record import STEPS
from circuits.retrieval import scan
from circuits.scan_result import ScanResult

BAD = "<script>alert(1)</script><img src=x onerror=alert(2)>"
ASKED = {**PROMPTS, "lengths": (96, 192), "depths": (0.2, 0.8), "n_haystacks": 2}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run():
    return scan(world("copy_content")[0], **ASKED)


@pytest.fixture(scope="module")
def other():
    return scan(world("copy_content")[0], **ASKED | {"seed": 5})


@pytest.fixture(scope="module")
def address(run, other, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    first, second = (r.save(folder / n) for r, n in ((run, "first"), (other, "second")))
    return explore(first, second, export=folder / "page.html").as_uri()


@pytest.fixture()
def page(browser, address):
    with opened(browser, address) as (page, watch):
        page.watch = watch
        yield page
        assert watch.errors == []


def state(page):
    return {k: v[0] for k, v in parse_qs(page.url.partition("#")[2]).items()}


def box_of(page, panel):
    drawn = page.locator(f"#panel-{panel} .plot .nsewdrag").first
    drawn.scroll_into_view_if_needed()
    return drawn.bounding_box()


def click_head(page, layer, head, shape):
    """Where a person would click: the middle of the cell in the drawn map."""
    box = box_of(page, "heads")
    n_layers, n_heads = shape
    page.mouse.click(
        box["x"] + box["width"] * (head + 0.5) / n_heads,
        box["y"] + box["height"] * (1 - (layer + 0.5) / n_layers),
    )


def cells(page, panel):
    return page.eval_on_selector_all(
        f"#panel-{panel} tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )


def saved(page, panel, kind, tmp_path):
    with page.expect_download() as download:
        page.click(f"#panel-{panel} [data-export={kind}]")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def chosen_rows(run, page):
    at = state(page)
    name = at["trial"].partition(".")[2] if "trial" in at else run.attention.trials[0].trial
    return run.attention.by_name[name]


# -- heads and their attention ----------------------------------------------------------------


def test_it_opens_offline_and_asks_for_nothing(page, address):
    asked = [u for u in page.watch.requests if not u.startswith(("file:", "data:", "blob:"))]
    assert asked == [] and page.title() == "mnemoscope explorer"
    assert page.locator(".card").count() == 8


def test_a_click_on_a_head_shows_its_kept_keys(page, run):
    best = run.top(1)[0]
    click_head(page, best.layer, best.head, run.shape)
    page.wait_for_function(f"location.hash.includes('head={best}')")
    rows = chosen_rows(run, page)
    first = rows.produced.index(next(p for p in rows.produced if p))
    keys = rows.keys[best.layer, best.head, first]
    weights = rows.weights[best.layer, best.head, first] / STEPS
    shown = cells(page, "keys")
    n = int((keys >= 0).sum())
    assert [int(c[1]) for c in shown] == keys[:n].tolist()
    assert np.allclose([float(c[3]) for c in shown], weights[:n], atol=6e-4)
    toward = rows.toward[best.layer, best.head, first][:n].astype(float)
    written = [float(c[4].replace("−", "-")) for c in shown]
    assert np.allclose(written, toward, atol=6e-3)
    kept = f"{100 * rows.kept[best.layer, best.head, first]:.0f} %"
    assert kept in page.inner_text("#panel-keys")


def test_the_needle_stands_boxed_in_the_strip_and_is_the_darkest(page, run):
    best = run.top(1)[0]
    click_head(page, best.layer, best.head, run.shape)
    rows = chosen_rows(run, page)
    text = "".join(page.locator("#panel-tokens .token.value").all_inner_texts())
    start, stop = rows.spans["value"]
    tokens = run.attention.contexts[rows.context][start:stop]
    assert text == "".join(t.replace(" ", "␣") for t in tokens)
    heaviest = page.eval_on_selector_all(
        "#panel-tokens .token",
        """all => all.map(t => [t.title, (t.style.background.match(/[\\d.]+\\)/) || ["0"])[0]])
            .sort((a, b) => parseFloat(b[1]) - parseFloat(a[1]))[0][0]""",
    )
    first = next(i for i, p in enumerate(rows.produced) if p)
    assert heaviest.startswith(f"position {rows.keys[best.layer, best.head, first, 0]},")


def test_a_click_on_a_row_changes_the_row(page, run):
    rows = chosen_rows(run, page)
    page.locator("#panel-tokens .token.row").last.click()
    assert state(page)["row"] == str(len(rows.positions) - 1)
    assert str(rows.positions[-1]) in page.inner_text("#panel-keys .body .about")


def test_the_keyboard_moves_among_heads(page, run):
    best = run.top(1)[0]
    click_head(page, best.layer, best.head, run.shape)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert state(page)["head"] == f"L{best.layer - 1}H{best.head - 1}"
    page.keyboard.press("Home")
    assert state(page)["head"] == str(best)
    order = [h for h in run.to_frame()["name"]]
    page.keyboard.press("]")
    assert state(page)["head"] in order[1:8]  # heads of one score stand in any order
    page.keyboard.press("Space")
    assert state(page)["ticks"] == state(page)["head"]


def test_scores_are_switched_filtered_and_sorted(page, run):
    page.select_option("select[name=score]", "r0.mass")
    mass = run.mean("mass").reshape(-1)
    shown = [float(c[2]) for c in cells(page, "ranking")]
    assert np.allclose(shown, np.sort(mass)[::-1][: len(shown)], atol=6e-3)
    page.fill("input[name=find]", "L1")
    page.wait_for_function("location.hash.includes('find=L1')")
    assert {c[1][:2] for c in cells(page, "ranking")} == {"L1"}
    page.fill("input[name=find]", "")
    page.wait_for_function("!location.hash.includes('find')")
    page.click("#panel-ranking th >> nth=1")
    assert cells(page, "ranking")[0][1] == "L0H0"


def test_the_threshold_keeps_what_reaches_it(page, run):
    page.click("text=usual: 0.1")
    page.wait_for_function("location.hash.includes('line=0.1')")
    assert len(cells(page, "ranking")) == int((run.mean("copy") >= 0.1).sum())


def test_a_cell_of_the_grid_opens_its_trial(page, run):
    lengths = sorted(run.trials["length"].unique())
    box = box_of(page, "grid")
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.75)
    page.wait_for_function("location.hash.includes('d0.80')")
    assert f"n{lengths[-1]}-d0.80" in state(page)["trial"]
    assert f"{lengths[-1] + len(chosen_rows(run, page).suffix)} tokens" in page.inner_text(
        "#panel-tokens"
    )


# -- the map ----------------------------------------------------------------------------------


def heat(page, panel):
    return page.eval_on_selector(
        f"#panel-{panel} .plot",
        "p => ({z: p.data[0].z.map(r => Array.from(r)), x: Array.from(p.data[0].x)})",
    )


def test_zooming_bins_the_kept_keys_anew_and_loses_none(page, run):
    best = run.top(1)[0]
    click_head(page, best.layer, best.head, run.shape)
    rows = chosen_rows(run, page)
    whole = heat(page, "pattern")
    weights = rows.weights[best.layer, best.head] / STEPS
    assert np.allclose(np.max(whole["z"], 1), weights.max(-1), atol=1e-6)
    box = box_of(page, "pattern")
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, y, steps=4)
    page.mouse.up()
    page.wait_for_function("location.hash.includes('zoom=')")
    k0, k1 = (int(v) for v in state(page)["zoom"].split(",")[2:])
    part = heat(page, "pattern")
    assert part["x"][0] == k0 and part["x"][-1] == k1 and k1 - k0 < whole["x"][-1]
    keys = rows.keys[best.layer, best.head]
    inside = np.where((keys >= k0) & (keys < k1), weights, 0).max(-1)
    assert np.allclose(np.max(part["z"], 1), inside, atol=1e-6)
    page.click("text=Zoom out")
    assert "zoom" not in state(page)


def test_the_whole_map_is_the_one_that_was_kept(page, run):
    maps = run.attention.maps
    click_head(page, maps.heads[0].layer, maps.heads[0].head, run.shape)
    page.select_option("select[name=trial]", f"r0.{maps.trial}")
    page.click("text=Whole trial")
    assert np.allclose(heat(page, "pattern")["z"], maps.values[0] / STEPS, atol=1e-6)
    other = next(t.trial for t in run.attention.trials if t.trial != maps.trial)
    page.select_option("select[name=trial]", f"r0.{other}")
    assert "Attach the model" in page.inner_text("#panel-pattern")


# -- taking away, coming back -----------------------------------------------------------------


@pytest.mark.parametrize(
    "panel", ["heads", "ranking", "grid", "regions", "tokens", "keys", "pattern"]
)
def test_every_panel_can_be_taken_away(page, tmp_path, panel):
    table = list(csv.reader(io.StringIO(saved(page, panel, "csv", tmp_path).read_text("utf-8"))))
    assert len(table) > 2 and len({len(row) for row in table}) == 1
    picture = saved(page, panel, "svg", tmp_path).read_text("utf-8")
    assert picture.startswith("<svg") and "</svg>" in picture
    assert saved(page, panel, "png", tmp_path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_csv_of_heads_holds_the_scores(page, run, tmp_path):
    text = saved(page, "heads", "csv", tmp_path).read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert np.allclose([float(r["copy"]) for r in rows], run.mean("copy").reshape(-1), atol=1e-6)


def test_the_address_brings_everything_back(page, browser, run):
    page.select_option("select[name=score]", "r0.mass")
    click_head(page, 1, 1, run.shape)
    page.locator("#panel-tokens .token.row").last.click()
    page.click("#panel-ranking tbody input >> nth=0")
    with opened(browser, page.url) as (again, watch):
        assert state(again) == state(page)
        assert cells(again, "keys") == cells(page, "keys")
        assert again.input_value("select[name=score]") == "r0.mass"
        assert watch.errors == []


SPOILT = (
    "view=nothing&head=L99H0&trial=r9.x&row=-4&score=r0.no&zoom=a,b",
    "head=%3Cscript%3E&line=x&sort=99&ticks=L1,,x&model=7",
)


@pytest.mark.parametrize("words", SPOILT)
def test_a_spoilt_address_opens_the_page_all_the_same(browser, address, words):
    with opened(browser, f"{address}#{words}") as (page, watch):
        assert page.locator("#panel-keys tbody tr").count() > 0
        assert watch.errors == []


# -- comparing, what if -----------------------------------------------------------------------


def test_two_runs_are_compared_head_by_head(page, run, other):
    page.click("[data-view=compare]")
    assert np.allclose(heat_z(page), run.mean("copy") - other.mean("copy"), atol=1e-5)
    scale = page.eval_on_selector(
        "#panel-difference .plot", "p => [p.data[0].zmin, p.data[0].zmax]"
    )
    assert scale[0] == -scale[1]
    page.select_option("select[name=b]", "r0.mass")
    assert np.allclose(heat_z(page), run.mean("copy") - run.mean("mass"), atol=1e-5)


def heat_z(page):
    return page.eval_on_selector(
        "#panel-difference .plot", "p => p.data[0].z.map(r => Array.from(r))"
    )


def test_models_of_other_shapes_are_compared_by_their_order(browser, run, tmp_path):
    wide = scan(world("grouped")[0], **ASKED)
    if wide.shape == run.shape:  # one layer taken away, as a smaller model would have it
        cut = {n: v[:, :-1] for n, v in wide.values.items()}
        roles = {n: v[:, :-1] for n, v in wide.roles.items()}
        made = replace(wide.provenance, n_layers=wide.shape[0] - 1, weight_hash="other")
        wide = replace(wide, values=cut, roles=roles, provenance=made, attention=None)
    path = explore(run, wide, export=tmp_path / "page.html")
    with opened(browser, path.as_uri() + "#view=compare") as (page, watch):
        assert "no counterparts" in page.inner_text("#panel-difference")
        assert page.locator("select[name=a]").count() == 1
        page.click("[data-view=heads]")
        page.select_option("select[name=model]", "1")
        assert page.locator("#panel-ranking tbody tr").count() > 0
        assert watch.errors == []


def test_what_if_says_why_it_is_grey(page):
    assert "No model is attached" in page.inner_text("#panel-whatif")
    assert page.locator("#panel-whatif .go").is_disabled()


# -- text of others, screens ------------------------------------------------------------------


def test_markup_in_tokens_and_names_shows_as_text(browser, run, tmp_path):
    record = run.attention
    contexts = {i: (t[0], BAD, *t[2:]) for i, t in record.contexts.items()}
    trials = tuple(
        replace(t, suffix=(BAD, *t.suffix[1:]), produced=(*t.produced[:-1], BAD))
        for t in record.trials
    )
    spoilt = replace(
        run,
        attention=replace(record, contexts=contexts, trials=trials),
        provenance=replace(run.provenance, model=BAD),
        settings=run.settings | {"command": BAD},
        notes=(BAD,),
    )
    path = explore(spoilt, export=tmp_path / "page.html")
    text = path.read_text("utf-8")
    assert BAD not in text
    with opened(browser, path.as_uri()) as (page, watch):
        page.click("summary >> nth=0")
        assert BAD in page.inner_text(".run")
        shown = page.locator("#panel-tokens .token").all_inner_texts()
        assert BAD.replace(" ", "␣") in shown
        page.hover("#panel-regions .plot .nsewdrag")
        page.locator("#panel-tokens .token.row").last.click()
        for view in page.locator("nav button").all():
            view.click()
        assert page.locator("img[src=x], .explorer script").count() == 0
        assert watch.errors == []


@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_nothing_runs_off_the_screen(browser, address, width):
    with opened(browser, address, width=width) as (page, watch):
        for view in page.locator("nav button").all():
            view.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            over = page.eval_on_selector_all(
                ".card", "all => all.filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.id)"
            )
            assert over == []
        assert watch.errors == []


def test_a_run_without_attention_says_what_to_do(browser, run, tmp_path):
    path = explore(replace(run, attention=None), export=tmp_path / "page.html")
    with opened(browser, path.as_uri()) as (page, watch):
        assert "--model" in page.inner_text("#panel-tokens")
        assert page.locator("#panel-ranking tbody tr").count() > 0
        assert watch.errors == []


@pytest.mark.parametrize("harm", ["cut", "spoilt"])
def test_a_damaged_page_says_so_in_the_place_of_itself(browser, address, tmp_path, harm):
    from urllib.request import url2pathname

    text = Path(url2pathname(address.removeprefix("file://"))).read_text("utf-8")
    at = text.index('"block":"') + 400
    broken = text[:at] + ("" if harm == "cut" else "AAAA" * 50) + text[at + 200 :]
    if harm == "cut":  # the end of the data is gone, the scripts are there
        end = text.index("</script>", at)
        broken = text[:at] + text[end:]
    (tmp_path / "page.html").write_text(broken, "utf-8")
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#explorer[data-ready=no]")
    assert "damaged" in page.inner_text(".fatal")
    context.close()


def test_a_folder_that_was_exported_twice_gives_the_same_page(run, tmp_path):
    folder = run.save(tmp_path / "run")
    one, two = (explore(folder, export=tmp_path / f"{i}.html").read_text("utf-8") for i in "ab")
    assert one == two
    assert Path(tmp_path / "a.html").stat().st_size < 15e6
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", one[: one.index("plotly.js v")])
    assert isinstance(ScanResult.load(folder), ScanResult)


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_in_which_nothing_was_answered_opens_and_shows_what_was_asked(
    browser, run, tmp_path, kept
):
    unanswered = replace(run, trials=run.trials.assign(passed=False))
    if not kept:
        unanswered = replace(unanswered, attention=None)
    path = explore(unanswered, export=tmp_path / "page.html")
    with opened(browser, path.as_uri()) as (page, watch):
        assert "scores" in page.inner_text("#panel-ranking")
        assert page.locator("#panel-grid .plot").count() == 1
        assert page.locator("#panel-keys tbody tr").count() > 0 if kept else True
        assert watch.errors == []
