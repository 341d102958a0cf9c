"""The report in a real browser: it draws, asks for nothing, moves, and runs no text of a collection."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from tests.browser import Browser, chromium
from tests.models import TOY_MODEL
from tests.reports import EVIL, SEPARATED, record, stored, verification
from tests.test_claims import three

READY = "document.documentElement.dataset.ready === ''"
DRAWN = "document.querySelector('.chart') && !document.querySelector('.chart:not([data-drawn])')"
SMALL = "document.querySelector('#section').value = '1'; document.querySelector('#section').dispatchEvent(new Event('change'))"
"""Shows the section of model m, which has links and hostile texts."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        if shutil.which("apt-get"):
            pytest.fail("There is no Chromium: scripts/check installs it, or `apt-get install chromium`.")
        pytest.skip("there is no Chromium here, and no apt-get to install it with")
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def file(told: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mi.report(registry=told, out=tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Browser]:
    """The page, drawn; at the end it has logged nothing and asked for nothing."""
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(file)
    browser.until(READY)
    yield browser
    assert browser.run("window.__pwned === undefined")
    assert browser.logged == [] and browser.requests == [file.as_uri()]


def small(page: Browser) -> None:
    page.run(SMALL)
    page.until("document.querySelector('#lead').textContent.startsWith('Exploratory, by no plan: 1 head is linked')")
    page.until(DRAWN)


def sites(page: Browser) -> list[str]:
    return list(
        page.run(
            "[...document.querySelectorAll('#links tbody tr:not([hidden])')].map((row) => row.cells[0].textContent)"
        )
    )


def test_every_figure_is_drawn(page: Browser) -> None:
    boxes = page.run(
        "[...document.querySelectorAll('figure')].map((one) => {"
        " const svg = one.querySelector('.chart svg'), box = svg.getBoundingClientRect();"
        " return [one.querySelector('h3').textContent, box.width, box.height, svg.querySelectorAll('path, text').length]; })"
    )
    assert len(boxes) == 3 and all(width > 100 and height > 80 and marks > 5 for _, width, height, marks in boxes), (
        boxes
    )
    assert "mechir run vast2025/layer_sweep --model" in page.run("document.querySelector('.command').textContent")
    page.click("figure details:last-of-type summary")
    page.until("document.querySelectorAll('figure details[open] tbody tr').length === 6")


def test_colours_are_those_of_the_theme(page: Browser) -> None:
    ink = "getComputedStyle(document.querySelector('.chart .role-axis-title text')).fill"
    assert page.run(ink) == "rgb(29, 34, 40)"
    page.scheme("dark")
    assert page.run(ink) == "rgb(227, 231, 235)"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_the_table_of_links_sorts_and_filters(page: Browser) -> None:
    small(page)
    before = sites(page)
    assert sorted(before) == ["embed.u0", "embed.u1", "h0.0", "h1.2", "h3.1"] and before[0] == "h1.2"
    sort = "#links thead th:nth-child(4) button"
    page.click(sort)
    assert page.run("document.querySelector('#links thead th:nth-child(4)').getAttribute('aria-sort')") == "descending"
    assert sites(page)[:3] == ["h1.2", "h3.1", "embed.u0"]
    page.run(f"document.querySelector({json.dumps(sort)}).focus()")
    page.press("Enter")  # by keyboard
    assert page.run("document.querySelector('#links thead th:nth-child(4)').getAttribute('aria-sort')") == "ascending"
    assert sites(page)[0] == "embed.u0" and set(sites(page)[3:]) == {"h0.0", "embed.u1"}  # what is missing stands last
    page.click("#links thead th:nth-child(1) button")
    assert sites(page) == ["embed.u0", "embed.u1", "h0.0", "h1.2", "h3.1"]
    page.run("document.querySelector('#filter').focus()")
    assert page.run("document.querySelectorAll('#links thead th').length") == 7
    page.click("#links tbody tr:nth-child(4) summary")
    text = page.until("document.querySelector('#links td details[open]').textContent")
    assert text.startswith("2 of 3 hold") and "patching\u2009\u20200.9[0.89, 0.91]share of the gap" in text
    page.run("document.querySelector('#filter').focus()")
    for letter in "dead":
        page.press(letter)
    assert sites(page) == ["h0.0"] and page.run("document.querySelector('#links-table .faint').textContent") == "1 of 5"


def test_the_map_switches_evidence_and_opens_dossiers(page: Browser) -> None:
    small(page)
    cell = "document.querySelector('[data-site=\"h1.2\"]')"
    assert page.run(f"{cell}.textContent") == ".30" and page.run(f"{cell}.classList.contains('holds')")
    other = page.run(
        "[...document.querySelectorAll('#evidence option')].find((one) => one.textContent.startsWith('patching')).value"
    )
    page.run(
        f"document.querySelector('#evidence').value = '{other}'; document.querySelector('#evidence').dispatchEvent(new Event('change'))"
    )
    assert page.run(f"{cell}.textContent") == ".90" and "causal" in page.run(
        "document.querySelector('#map-view .faint').textContent"
    )
    assert not page.run("document.querySelector('[data-site=\"h0.0\"]').classList.contains('holds')")
    page.click('[data-site="h1.2"]')
    assert page.run("location.hash") == "#h1.2"
    text = page.until("!document.querySelector('#dossier').hidden && document.querySelector('#dossier').textContent")
    assert "linked to tf (exploratory), m on c: patching, tfc1, at query|doc 0.9 [0.89, 0.91]" in text and EVIL in text
    assert page.run("document.activeElement.id") == "dossier-heading"
    page.press("Escape")
    assert page.run("document.querySelector('#dossier').hidden && location.hash") == "#map"
    assert page.run("document.activeElement.dataset.site") == "h1.2"
    page.press("ArrowUp")
    page.press("ArrowLeft")
    assert page.run("document.activeElement.dataset.site") == "h0.1"
    page.press("Enter")
    assert page.run("document.querySelector('#dossier').hidden")  # nothing is known of it
    page.press("ArrowLeft")
    page.press("Enter")
    text = page.until(
        "document.querySelector('#dossier-heading').textContent === 'h0.0' && document.querySelector('#dossier').textContent"
    )
    assert "flagged by its pattern but causally dead" in text and "mechir run joint/examples" in text
    page.run("location.hash = 'h3.1'")
    page.until("document.querySelector('#dossier-heading').textContent === 'h3.1'")


def test_pieces_shade_the_other_text(page: Browser) -> None:
    small(page)
    page.run("location.hash = 'h1.2'")
    page.until("document.querySelectorAll('#dossier .strip').length === 2")
    shades = "[...document.querySelectorAll('#dossier .strip')[1].querySelectorAll('.piece')].map((one) => one.style.getPropertyValue('--w'))"
    matches = "[...document.querySelectorAll('#dossier .strip .match')].map((one) => one.textContent)"
    assert page.run(matches) == ["good", EVIL, EVIL, "good"]
    query = "#dossier .strip .word:first-child .piece"
    page.hover(query)
    assert page.run(shades)[:2] == ["1.000", "0.200"]
    assert "looks at" in page.run("document.querySelector('#dossier .told').textContent")
    page.hover("#dossier-heading")
    page.run(f"document.querySelector({json.dumps(query)}).focus()")
    page.press("ArrowRight")
    told = page.run("document.querySelector('#dossier .told').textContent")
    assert told.startswith("h1.2: query piece \u201cbye\u201d looks at " + EVIL[:20] + "\u2026 .500, good .100")
    page.press("ArrowDown")
    assert page.run("document.querySelector('#dossier .told').textContent").startswith("h1.2: document piece \u201c")
    assert (
        page.run(
            "document.querySelectorAll('#dossier .strip')[0].querySelectorAll('.piece')[0].style.getPropertyValue('--w')"
        )
        == "1.000"
    )
    page.click("#dossier .choice button:last-child")
    page.click(query)
    assert "is looked at by" in page.run("document.querySelector('#dossier .told').textContent")


def test_no_text_of_a_collection_runs(page: Browser) -> None:
    small(page)
    page.run("location.hash = 'h1.2'")
    page.until("document.querySelectorAll('#dossier .strip').length === 2")
    text = page.run("document.querySelector('#dossier .mechir-strips').textContent")
    assert EVIL in text and SEPARATED in text  # shown, as it is
    assert EVIL in page.run("document.querySelector('.chart svg').textContent")
    assert page.run("document.querySelectorAll('img, iframe, body script:not([type])').length") == 2  # our own two
    page.hover(".chart .mark-rect path", corner=True)
    page.until("document.querySelectorAll('.vg-tooltip.visible').length")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.until("document.querySelectorAll('figure details[open] tbody tr').length > 3")
    assert page.run("document.querySelectorAll('img').length") == 0


def test_the_policy_stops_what_would_get_in(page: Browser) -> None:
    page.run(
        "{ const one = document.createElement('script'); one.textContent = 'window.__pwned = 1'; document.body.append(one); }"
    )
    assert page.run("fetch('data:,x').then(() => 'let through', () => 'stopped')") == "stopped"
    assert any("Content Security Policy" in line for line in page.logged) or page.until("true")
    page.run("1")
    page.logged.clear()
    page.requests[1:] = []


def test_a_chart_loads_nothing(browser: Browser, tmp_path: Path) -> None:
    frame = verification()
    at = {"value": "http://127.0.0.1:9/there"}
    inside = {"data": {"values": [{"a": 1}]}, "mark": "image", "encoding": {"url": at, "href": at, "x": {"field": "a"}}}
    asked = {"usermeta": {"embedOptions": {"ast": False, "patch": at["value"], "loader": {}}}}
    for name, spec in (("a", inside | asked), ("b", inside | {"data": {"url": at["value"]}}), ("c", {"mark": 3})):
        run = stored(tmp_path, record(name), frame, rows=frame)
        (run.path / "chart.json").write_text(json.dumps(spec))
    file = mi.report(registry=tmp_path)
    browser.open(file)
    browser.until(READY)
    browser.run(
        "document.querySelectorAll('svg image').forEach((one) => one.dispatchEvent(new MouseEvent('click', { bubbles: true })))"
    )
    assert browser.run("location.href") == file.as_uri() and browser.requests == [file.as_uri()]
    images = browser.run("[...document.querySelectorAll('svg image')].map((one) => one.getAttribute('href'))")
    assert images and not any(images)
    assert browser.run("document.querySelectorAll('.chart')[2].textContent").startswith("This chart cannot be drawn: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Browser, scheme: str) -> None:
    page.scheme(scheme)
    page.size(390, 844)
    for change in ("", SMALL, "location.hash = 'h1.2'"):
        page.run(change or "0")
        page.until(DRAWN)
        if change == SMALL:
            page.hover(".chart .mark-rect path", corner=True)
            page.until("document.querySelectorAll('.vg-tooltip.visible').length")
        wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 390)"
        outside = f"{wide}.filter((one) => !one.closest('.scroll, .chart')).map((one) => one.outerHTML.slice(0, 200))"
        assert page.run("document.documentElement.scrollWidth") == 390, page.run(outside)
    assert page.run("document.querySelector('#dossier').scrollWidth") <= 390
    page.run("document.querySelector('.subtitle').textContent = '--heads ' + 'h11.11,'.repeat(30)")
    assert page.run("document.documentElement.scrollWidth") == 390
    first = "document.querySelector('#links tbody th')"
    page.run("location.hash = '#links'; document.querySelector('#links .scroll').scrollLeft = 200")
    assert page.run(f"{first}.getBoundingClientRect().x") < 30  # the site stays where it is


@pytest.mark.parametrize("engine", ["mechir", "circuitsvis"])
def test_a_picture_of_attention_stands_alone(browser: Browser, tmp_path: Path, engine: str) -> None:
    image = EVIL[EVIL.index("<img") :]  # a query of more than half of the room would not be read
    pair: Any = (f"how {image}", f"the goldfish {EVIL} grow")
    saved = mi.show.attention(mi.load(TOY_MODEL), pair, heads=("h0.1", "h1.2"), engine=engine).save(tmp_path / "a.html")
    browser.open(saved)
    browser.until("document.querySelectorAll('.piece, canvas').length > 1")
    if engine == "mechir":
        browser.hover(".piece")
        assert browser.run("document.querySelector('.told').textContent").startswith(
            "h0.1: query piece \u201chow\u201d"
        )
        browser.click(".choice button:last-child")
        browser.hover(".piece")
        assert browser.run("document.querySelector('.told').textContent").startswith("h1.2: ")
    assert browser.run("window.__pwned === undefined") and browser.logged == [] and browser.requests == [saved.as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_claim_leads_to_the_run_that_it_stands_on(browser: Browser, tmp_path: Path, width: int) -> None:
    browser.size(width, 900)
    oldest, all_heads, one_head = three(tmp_path)
    browser.open(mi.report(registry=tmp_path))
    browser.until(READY)
    links = "[...document.querySelectorAll('#answers a.run')].map((one) => [one.textContent, one.getAttribute('href')])"
    assert [one_head.id[:8], f"#run-{one_head.id}"] in browser.run(links)
    assert browser.run("[...document.querySelectorAll('#map-view a.run')].map((one) => one.textContent)") == [
        one_head.id[:8], all_heads.id[:8],
    ]  # fmt: skip
    for site, run in (("h0.0", all_heads), ("h1.2", one_head)):
        browser.run(f"location.hash = '{site}'")
        browser.until(f"document.querySelector('#dossier-heading').textContent === '{site}'")
        assert browser.run("document.querySelector('#dossier a.run').getAttribute('href')") == f"#run-{run.id}"
    browser.click("#dossier a.run")
    browser.until("document.querySelector('#dossier').hidden")
    top = f"document.querySelector('#run-{one_head.id}').getBoundingClientRect().y"
    assert 0 <= browser.until(f"{top} < 500 && {top}") < 500
    captions = browser.run("[...document.querySelectorAll('figcaption p.faint')].map((one) => one.textContent)")
    stand = [f"Run {run.id[:8]}, on which stand: patching, tfc1, at query|doc." for run in (one_head, all_heads)]
    assert captions == [*stand, f"Run {oldest.id[:8]}."]
    assert browser.run("document.querySelector('.subtitle').textContent").startswith("13 queries, 90 pairs")
    assert browser.logged == []
