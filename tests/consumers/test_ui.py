"""The playground in a real Chromium, offline; `make test-ui` has an environment with what drives it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from glad_artifact import write_glad_artifact
from quiet_page import quiet_page
from tiny_model import write_tiny_model

from subvene.runner.engines.in_process import InProcess
from subvene.runner.engines.playground.screen import Shown
from subvene.runner.engines.playground.server import server
from subvene.runner.reports.experiment import run_experiment
from subvene.specs import parse_spec

driver = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; `make test-ui` has an environment with it"
)

EVIL = "<img/src=x/onerror=document.title='owned'><b>{}</b>"
LONG = 60_000
"""Milliseconds within which anything comes, on a machine that is busy."""
ARMS = ("baseline", "steered")
ROLES = {"user", "assistant", "system", ":"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """An artifact with a name, and a model whose every word is a piece of HTML that would run a script."""
    folder = tmp_path_factory.mktemp("ui")
    base = write_tiny_model(folder / "model")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word if i < 4 or word in ROLES else EVIL.format(word): i for word, i in vocabulary.items()
    }
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    m = write_glad_artifact(base, folder / "artifact")
    return {"<i>glad</i>": Shown(m, folder / "artifact")}


def serving(shown: dict[str, Shown], key: str | None = None) -> Iterator[str]:
    engine = InProcess({name: one.m for name, one in shown.items()})
    listening = server(engine, shown, "127.0.0.1", 0, key)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture(scope="module")
def url(shown: dict[str, Shown]) -> Iterator[str]:
    yield from serving(shown)


@pytest.fixture
def page(chromium: Any, url: str) -> Iterator[Any]:
    yield from opened(chromium, url)


def opened(chromium: Any, url: str, **look: Any) -> Iterator[Any]:
    """A page that complains of nothing, asks nobody else, and is owned by nobody."""
    with quiet_page(chromium, url, timeout=LONG, **look) as page:
        page.goto(url)
        page.locator("#main").wait_for()
        yield page
        assert page.title() == "subvene playground"


def answered(page: Any) -> dict[str, str]:
    """Answer by the keyboard; what both answers say when their tokens are coloured."""
    page.keyboard.press("Control+Enter")
    page.locator("#legend").wait_for()
    return {arm: page.locator(f"#{arm}").text_content() for arm in ARMS}


def test_what_the_model_and_files_say_stays_text(page: Any) -> None:
    answers = answered(page)
    assert all("<b>" in text and "onerror" in text for text in answers.values())
    assert page.evaluate("[...document.querySelectorAll('.answer *')].every((one) => one.tagName === 'SPAN')")
    assert page.locator("fieldset legend").text_content() == "<i>glad</i>"
    assert page.locator("img, i").count() == 0
    assert "<i>glad</i>" in page.locator("#lines th").text_content()


def test_by_the_keyboard_alone(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "prompt"
    first = answered(page)
    assert first["baseline"] != first["steered"]
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "strength-0-0":
            break
    assert "run" in seen
    page.keyboard.press("Home")  # the slider's least
    assert page.locator(".slider input[type=number]").input_value() == "-6"
    assert "have changed" in page.locator("#status").text_content()
    second = answered(page)
    assert second["baseline"] == first["baseline"]
    assert second["steered"] != first["steered"]
    assert page.locator("#lines td").first.text_content() == "-6"
    page.focus("#steered")
    page.keyboard.press("ArrowRight")
    assert re.match(r"steered, token 2 of \d+: .* -?\d+\.\d\d$", page.locator("#token").text_content())
    page.keyboard.press("End")
    count = page.locator("#steered span").count()
    assert f"token {count} of {count}:" in page.locator("#token").text_content()


def test_escape_stops_and_the_server_goes_on(page: Any, shown: dict[str, Shown]) -> None:
    (artifact,) = shown.values()
    go_on = threading.Event()
    hook = artifact.m.model.register_forward_pre_hook(lambda *_: go_on.wait(60) and None)
    page.keyboard.press("Control+Enter")
    driver.expect(page.locator("#status")).to_have_text("Answering…", timeout=LONG)
    page.keyboard.press("Escape")
    driver.expect(page.locator("#status")).to_have_text("Stopped.", timeout=LONG)
    assert page.locator("#stop").is_disabled()
    go_on.set()
    hook.remove()
    assert all(answered(page).values())
    driver.expect(page.locator("#status")).to_be_empty(timeout=LONG)


def test_colours_are_of_the_chosen_reading(page: Any) -> None:
    answered(page)

    def colours(arm: str) -> list[str]:
        return page.locator(f"#{arm} span").evaluate_all(
            "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
        )

    text = {arm: colours(arm) for arm in ARMS}
    assert len(set(text["steered"])) > 1
    page.select_option("#how", "after")
    assert colours("steered") != text["steered"]
    page.select_option("#vector", "")
    assert set(colours("steered")) == {"rgba(0, 0, 0, 0)"}
    assert page.locator("#legend").is_hidden()


def test_an_artifact_that_is_off_is_not_asked_for(page: Any) -> None:
    page.uncheck("fieldset input[type=checkbox]")
    page.keyboard.press("Control+Enter")
    page.get_by_text("No artifact is on.").wait_for()
    driver.expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    assert page.locator("#baseline").text_content()
    assert page.locator("#steered").text_content() == ""


def test_a_control_that_changes_answers_again(page: Any) -> None:
    first = answered(page)
    page.check("#again")
    page.fill(".slider input[type=number]", "-5.25")
    page.keyboard.press("Tab")
    driver.expect(page.locator("#lines td").first).to_have_text("-5.25", timeout=LONG)
    page.locator("#legend").wait_for()
    assert page.locator("#steered").text_content() != first["steered"]


def test_the_file_that_is_downloaded_gives_what_is_on_the_screen(page: Any, tmp_path: Path) -> None:
    page.fill(".slider input[type=number]", "-4.5")
    page.select_option("fieldset select", "all")
    page.fill("#longest", "6")
    answers = answered(page)
    page.click("#export")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "playground.yaml")
    text = (tmp_path / "playground.yaml").read_text()
    assert text == page.locator("#yaml").text_content()
    (declared,) = parse_spec(text).interventions
    assert (declared.strength, declared.positions) == (-4.5, "all")
    results = run_experiment(tmp_path / "playground.yaml", output=tmp_path / "out").results
    assert {one.label: one.items[0].text for one in results.conditions} == answers


def test_what_is_refused_is_said(page: Any) -> None:
    page.fill(".slider input[type=number]", "1e38")
    page.keyboard.press("Control+Enter")
    page.locator("#steered-note.bad").wait_for()
    assert "finite" in page.locator("#steered-note").text_content()
    assert page.locator("#baseline").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_screen_and_is_legible(chromium: Any, url: str, width: int, scheme: str) -> None:
    look = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for page in opened(chromium, url, **look):
        answered(page)
        page.click("#export")
        page.locator("#yaml").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert min(page.evaluate(CONTRASTS)) >= 4.5
        side_by_side = page.evaluate(
            "document.getElementById('baseline').getBoundingClientRect().top === "
            "document.getElementById('steered').getBoundingClientRect().top"
        )
        assert side_by_side == (width == 1200)


# Of every text that is seen, with what is behind it laid over each other (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const linear = (s) => s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
  const behind = (element) => element === null ? [255, 255, 255]
    : over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const speaks = (one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("main *, header *")].filter((one) =>
    one.checkVisibility() && !one.disabled && speaks(one)
  ).map((one) => {
    const under = behind(one), pair = [light(under), light(over(parse(getComputedStyle(one).color), under))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
}"""


def test_a_key_is_asked_for(chromium: Any, shown: dict[str, Shown]) -> None:
    for url in serving(shown, "secret"):
        page = chromium.new_page()
        page.goto(url)
        for key in ("wrong", "secret"):
            page.locator("#key").wait_for()
            page.fill("#key-text", key)
            page.keyboard.press("Enter")
        page.locator("#main").wait_for()
        page.reload()  # the key is kept while the tab is open
        page.locator("#main").wait_for()
        assert all(answered(page).values())
        page.close()


@pytest.mark.slow
def test_the_example_on_the_embedded_model(chromium: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from subvene.runner.cli.app import main; main()", "ui", "--port", "0"]
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, stderr=written, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for page in opened(chromium, wait_for_address(process, log)):
            assert page.locator("fieldset legend").text_content() == "cheerful"
            page.fill("#longest", "24")
            answers = answered(page)
            assert answers["baseline"] != answers["steered"]
            assert page.locator("#baseline span").count() == 24
            cells = page.locator("#lines td").all_text_contents()
            assert cells[:4] == ["1.5", "0", "1", "23"]
            page.click("#export")
            page.locator("#yaml").wait_for()
            parse_spec(page.locator("#yaml").text_content())
            if folder := os.environ.get("SUBVENE_SCREENSHOTS"):
                page.screenshot(path=Path(folder) / "playground.png", full_page=True)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the command says it listens at; fitting the example takes a while."""
    for _ in range(1200):
        if found := re.search(r"http://[\d.:]+/", log.read_text()):
            return found[0]
        try:
            process.wait(timeout=0.25)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(log.read_text())
