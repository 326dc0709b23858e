"""Reports of real runs in a real Chromium, offline; `make test-ui` has an environment with what drives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import loopback
import pytest
from quiet_page import quiet_page
from small_experiments import KINDS, Scripted, write_experiments

from subvene import run_experiment
from subvene.runner.reports.publish import FIGURES, PAGE

LONG = 60_000
"""Milliseconds within which anything comes, on a machine that is busy."""


@pytest.fixture(scope="module", params=list(KINDS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Path:
    """The folder of a run; none is made without a browser."""
    folder = tmp_path_factory.mktemp(request.param)
    with loopback.serve(Scripted) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBVENE_CACHE", str(folder / "cache"))
        path = write_experiments(folder, url, [request.param])[request.param]
        # A word that is wider than any screen.
        path.write_text(
            path.read_text().replace("prompts: [hello world]", f"prompts: [hello world, {'a' * 999}]")
        )
        return run_experiment(path, output=folder / "run").output


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_every_figure_is_drawn_and_the_page_fits_the_screen(
    chromium: Any, run: Path, width: int, scheme: str
) -> None:
    look = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "offline": True}
    with quiet_page(chromium, "file:", timeout=LONG, **look) as page:
        page.goto((run / PAGE).as_uri())
        figures = len(list((run / FIGURES).glob("*.svg")))
        assert page.locator("figure > .plot").count() == figures
        # What is chosen by a list is drawn when it is seen.
        for i in range(page.locator("select[data-panels]").count()):
            chooser = page.locator("select[data-panels]").nth(i)
            for value in chooser.locator("option").evaluate_all("all => all.map((one) => one.value)"):
                chooser.select_option(value)
        page.wait_for_function(
            "n => document.querySelectorAll('figure > .plot .main-svg .bglayer').length >= n", arg=figures
        )
        if folder := os.environ.get("SUBVENE_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{run.parent.name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # A table that scrolls says so at its side, and its caption is read without scrolling.
        for caption in page.locator(".scroll caption span:visible").all():
            assert caption.evaluate("one => one.getBoundingClientRect().right") <= width
        # Every trace that has points left a mark: a bundle without its kind would draw scatters or nothing.
        drawn = page.evaluate(
            """[...document.querySelectorAll('figure > .plot')].flatMap((box) =>
              box.data.map((trace, i) => [trace.type || 'scatter', box._fullData[i].type]))"""
        )
        assert all(asked == given for asked, given in drawn)
