"""The workbench in a real browser: deciding, measuring again, a second tab, a reload, and the keyboard alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from preceptor.contracts import OVERALL
from preceptor.policy import load_policy
from preceptor.policy.sealed import sealed
from preceptor.record import Record
from preceptor.workbench import Asked, make_workbench
from tests.unit.deciding import Room, errors_of, lay_room, lines_of, wrong

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 20_000

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]


@dataclass(kw_only=True)
class Site:
    """A workbench that is served, its room, and a gate that holds a recalibration until it is opened."""

    url: str
    room: Room
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def policy(self) -> Path:
        return self.room.session.policy

    def recalibrate(self, asked: Asked) -> Record:
        self.gate.wait()
        return self.room.recalibrate(asked)


def laid_aside(folder: Path, **options: Any) -> Room:
    """`lay_room` in a thread of its own: playwright keeps an event loop in this one, and a judge needs another."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lay_room, folder, **options).result()


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return laid_aside(tmp_path_factory.mktemp("browser"))


@contextmanager
def served(room: Room) -> Iterator[Site]:
    """The workbench of `room` behind a real server on a free port, the holdout sealed as the command seals it."""
    listener = socket.create_server(("127.0.0.1", 0))
    site = Site(url=f"http://127.0.0.1:{listener.getsockname()[1]}", room=room)
    site.gate.set()
    app = make_workbench(room.session, recalibrate=site.recalibrate)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with sealed(room.session.policy, room.session.corpus):
        thread.start()
        yield site
        site.gate.set()
        server.should_exit = True
        thread.join()


@pytest.fixture
def site(laid: Room, tmp_path: Path) -> Iterator[Site]:
    """A served workbench with files of its own."""
    shutil.copytree(laid.session.policy.parent, tmp_path / "room")
    session = replace(laid.session, policy=tmp_path / "room" / "policy", root=tmp_path / "room" / "root")
    with served(replace(laid, session=session)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def profile(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """A fresh profile; at its end, no tab has asked any origin but its own for anything, and no script has failed."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
    context.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    failed: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: failed.append(str(error.error)))
    context.on("console", lambda message: failed.append(message.text) if "Content Security" in message.text else None)
    yield context
    context.close()
    assert len({url.split("/api/")[0].split("/static/")[0].split("#")[0].rstrip("/") for url in asked}) == 1, asked
    assert failed == []


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with profile(browser) as context:
        yield context


def opened(context: BrowserContext, site: Site) -> Page:
    page = context.new_page()
    page.goto(site.url)
    page.wait_for_selector("body[data-ready]")
    return page


def shown_card(page: Page) -> tuple[str, str]:
    """The pair and dimension of the card that stands open, once the card and the list agree on it."""
    line = page.locator(".line[aria-current=true]")
    page.wait_for_function(
        "() => document.querySelector('.line[aria-current=true]')?.dataset.pair"
        " === document.querySelector('#card-article .id')?.textContent"
    )
    return str(line.get_attribute("data-pair")), str(line.get_attribute("data-dimension"))


def written(page: Page, text: str) -> None:
    """Returns once the page has said this of a decision."""
    page.wait_for_function("text => document.getElementById('live').textContent.includes(text)", arg=text)


def golden_line(site: Site, query: str, document: str) -> dict[str, Any] | None:
    lines = lines_of(site.policy / "golden" / "calibration.jsonl")
    return next((one for one in lines if (one["query"], one["document"]) == (query, document)), None)


def pair_texts(page: Page) -> tuple[str, str]:
    texts = page.locator("#card-article .pair:not(.reasons) dd").all_text_contents()
    return texts[0], texts[2]


def log_of(site: Site) -> list[dict[str, Any]]:
    return lines_of(site.policy / "decisions.jsonl") if (site.policy / "decisions.jsonl").exists() else []


def measured_of(site: Site, dimension: str) -> list[dict[str, Any]]:
    """Agreement on `dimension` over all pairs before and after the first recalibration, from its file."""
    session = site.room.session
    result = json.loads((session.notes / session.version_of(1) / "result.json").read_text())
    return [
        next(cell for cell in result[side] if (cell["dimension"], cell["slice"]) == (dimension, "all"))
        for side in ("before", "after")
    ]


def test_all_three_decisions_and_before_and_after(context: BrowserContext, site: Site) -> None:
    page = opened(context, site)
    page.fill("#decider", "Ana Ortiz")
    errors = errors_of(site.policy)

    _, amended = shown_card(page)
    page.check("input[value=amend]")
    page.select_option("#amend-grade", "2")
    page.fill("#anchor", "Neither clearly met nor clearly missed.")
    page.fill("#why", "Two graders read it differently.")
    page.click("#write")
    written(page, "amend anchor")
    assert load_policy(site.policy).rubric.dimension(amended).anchors[2] == "Neither clearly met nor clearly missed."
    assert "| 2 | Neither clearly met nor clearly missed. |" in (site.policy / "policy.md").read_text()

    page.click(f".line:not([data-dimension={amended}], [data-dimension={OVERALL}])")
    _, corrected = shown_card(page)
    query, document = pair_texts(page)
    before = golden_line(site, query, document)
    page.check("input[value=correct]")
    page.fill("#why", "The posting says so in its second sentence.")
    judge = int(page.input_value("#correct-grade"))
    page.click("#write")
    written(page, "correct label")
    after = golden_line(site, query, document)
    assert before is not None and after is not None
    assert (after["grades"][corrected], after["grader_id"]) == (judge, "Ana Ortiz")
    assert log_of(site)[1]["before"][f"grades.{corrected}"] == before["grades"][corrected] != judge

    shown_card(page)
    query, document = pair_texts(page)
    page.check("input[value=precedent]")
    page.fill("#precedent-id", "decided-in-the-browser")
    page.fill("#why", "It settles what counts as missing.")
    page.click("#write")
    written(page, "add precedent")
    precedent = load_policy(site.policy).precedents[-1]
    assert (precedent.id, precedent.query, precedent.document) == ("decided-in-the-browser", query, document)
    assert golden_line(site, query, document) is None
    assert [entry["kind"] for entry in log_of(site)] == ["amend anchor", "correct label", "add precedent"]
    assert errors_of(site.policy) == errors

    site.gate.clear()
    page.click("#recalibrate")
    page.wait_for_selector("#progress:not([hidden]) progress")
    page.reload()
    page.wait_for_selector("#progress:not([hidden]) progress")
    assert page.is_disabled("#recalibrate")
    site.gate.set()
    page.wait_for_selector("#before-after table")
    assert page.is_hidden("#progress")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    row = page.locator(f"#before-after tr[data-dimension={amended}]")
    kappas = row.locator("td b").all_text_contents()
    sides = measured_of(site, amended)
    assert kappas == [f"{side['quadratic']['value']:.2f}".replace("-", "\N{MINUS SIGN}") for side in sides]
    assert "judged again" in row.inner_text()
    assert page.locator("#before-after .touched").count() == 1
    assert "39 rows judged, 117 kept" in page.inner_text("#before-after summary")
    # The table of agreement is the new one.
    assert page.inner_text(f".cell[data-dimension={amended}][data-slice=all]") == kappas[1]

    page.click("nav [data-view=log]")
    page.wait_for_selector(".log tbody tr")
    assert page.locator(".log tbody tr").count() == 3
    page.click("nav [data-view=policy]")
    page.wait_for_selector("#document h1")
    assert "Neither clearly met nor clearly missed." in page.inner_text("#document")


def test_a_draft_outlives_a_reload_and_a_cell_filters(context: BrowserContext, site: Site) -> None:
    page = opened(context, site)
    cell = page.locator(".cell:not([data-slice=all])").nth(7)
    dimension, slice_ = cell.get_attribute("data-dimension"), cell.get_attribute("data-slice")
    cell.click()
    page.wait_for_selector(f".cell[data-dimension={dimension}][data-slice={slice_}][aria-pressed=true]")
    page.wait_for_function(
        "name => [...document.querySelectorAll('.line')].every((line) => line.dataset.dimension === name)",
        arg=dimension,
    )
    card = shown_card(page)
    page.check("input[value=amend]")
    page.fill("#anchor", "Half a thought")
    page.fill("#why", "Not done yet")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert shown_card(page) == card
    assert (page.input_value("#anchor"), page.input_value("#why")) == ("Half a thought", "Not done yet")
    # Without a name nothing is written, and the draft stays.
    page.click("#write")
    page.wait_for_function("() => document.activeElement.id === 'decider'")
    assert log_of(site) == []
    page.fill("#decider", "Ana Ortiz")
    page.fill("#anchor", "a | b")
    page.click("#write")
    page.wait_for_function("() => document.querySelector('#said.bad')?.textContent.includes(\"may not hold '|'\")")
    assert log_of(site) == []


def test_a_second_tab_is_shown_the_others_change_and_decides_again(context: BrowserContext, site: Site) -> None:
    first, second = opened(context, site), opened(context, site)
    assert shown_card(first) == shown_card(second)
    _, dimension = shown_card(first)
    first.fill("#decider", "Ana Ortiz")
    second.fill("#decider", "Ben Adeyemi")
    second.check("input[value=amend]")
    second.select_option("#amend-grade", "1")
    second.fill("#anchor", "As Ben has it.")
    second.fill("#why", "Ben's reason.")

    first.check("input[value=amend]")
    first.select_option("#amend-grade", "1")
    first.fill("#anchor", "As Ana has it.")
    first.fill("#why", "Ana's reason.")
    first.click("#write")
    written(first, "amend anchor")

    second.click("#write")
    second.wait_for_selector("#conflict")
    said = second.inner_text("#conflict")
    assert "As Ana has it." in said and "Ana Ortiz" in said and "Ana's reason." in said
    assert load_policy(site.policy).rubric.dimension(dimension).anchors[1] == "As Ana has it."
    assert second.is_disabled("#write")
    assert second.input_value("#anchor") == "As Ben has it."
    assert len(log_of(site)) == 1
    second.reload()
    second.wait_for_selector("#conflict")
    assert "As Ana has it." in second.inner_text("#conflict")
    assert second.input_value("#anchor") == "As Ben has it."

    second.click("#accept")
    second.click("#write")
    written(second, "amend anchor")
    assert load_policy(site.policy).rubric.dimension(dimension).anchors[1] == "As Ben has it."
    assert [(entry["decider"], entry["before"]) for entry in log_of(site)][1] == ("Ben Adeyemi", "As Ana has it.")


def test_the_keyboard_is_enough(context: BrowserContext, site: Site) -> None:
    page = opened(context, site)
    press = page.keyboard.press

    def tab_to(selector: str) -> None:
        for _ in range(120):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                assert page.evaluate("() => document.activeElement.matches(':focus-visible')")
                return
            press("Tab")
        pytest.fail(f"Tab never reaches {selector}")

    press("Tab")
    assert page.inner_text(":focus") == "Skip to the cards"
    tab_to("#decider")
    page.keyboard.type("Ana Ortiz")
    press("Escape")
    press("?")
    page.wait_for_selector("#help[open]")
    press("Escape")
    page.wait_for_selector("#help:not([open])", state="attached")

    start = shown_card(page)
    press("j")
    page.wait_for_function("pair => document.querySelector('#card-article .id').textContent !== pair", arg=start[0])
    assert shown_card(page) != start
    press("k")
    page.wait_for_function("pair => document.querySelector('#card-article .id').textContent === pair", arg=start[0])
    press("3")
    page.wait_for_selector("#correct-grade:focus")
    tab_to("#why")
    page.keyboard.type("Typed, j and 1 and all.")
    press("Control+Enter")
    written(page, "correct label")
    assert log_of(site)[0]["why"] == "Typed, j and 1 and all."
    assert page.evaluate("() => document.activeElement.classList.contains('line')")

    press("1")
    page.wait_for_selector("#amend-grade:focus")
    tab_to("#anchor")
    press("Control+A")
    page.keyboard.type("By keys alone.")
    tab_to("#why")
    page.keyboard.type("Because.")
    tab_to("#write")
    press("Enter")
    written(page, "amend anchor")
    tab_to("#recalibrate")
    press("Enter")
    page.wait_for_selector("#before-after table")
    assert [entry["kind"] for entry in log_of(site)] == ["correct label", "amend anchor"]


def test_texts_of_members_and_postings_are_never_markup(context: BrowserContext, tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    names = ("query", "profile", "document", "reason")
    room = laid_aside(tmp_path, judge_of=wrong, first={name: f"{name} {evil}" for name in names})
    with served(room) as site:
        page = opened(context, site)
        page.click(".line:has-text('query <img')")
        page.wait_for_function("() => document.querySelector('#card-article').textContent.includes('profile <img')")
        pair_id, dimension = shown_card(page)
        kind = {"pair_id": pair_id, "dimension": dimension, "cause": f"kind {evil}", "evidence": [f"evidence {evil}"]}
        (room.session.calibration(0) / "worklist.jsonl").write_text(f"{json.dumps(kind)}\n")
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert shown_card(page) == (pair_id, dimension)
        said = page.inner_text("#card-article")
        assert [name for name in (*names, "kind", "evidence") if f"{name} {evil}" not in said] == []
        assert page.locator("main img, main script").count() == 0
        assert page.title() == "Preceptor workbench"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser: Browser, site: Site, scheme: Any) -> None:
    with profile(browser, color_scheme=scheme) as context:
        page = opened(context, site)
        page.check("input[value=precedent]")
        faint = page.evaluate(_CONTRAST)
        page.goto(f"{site.url}/#policy")
        page.wait_for_selector("#document h1")
        faint += page.evaluate(_CONTRAST)
    assert faint == []


# Every element with text of its own whose contrast with the nearest painted ground is under 4.5 (WCAG 2.2, 1.4.3).
# Colours are painted and read back, so that any notation is understood; text of disabled controls is exempt.
_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, under) => top.slice(0, 3).map((part, i) => (part * top[3] + under[i] * (255 - top[3])) / 255);
  const ground = (node) => {
    if (!node) return rgba(getComputedStyle(document.body).backgroundColor);
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 255 ? own : over(own, ground(node.parentElement));
  };
  const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest(":disabled, .sr, .live, option, dialog")) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 9)}`)
  }
  return faint;
}"""
