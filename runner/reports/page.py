"""Reports: one HTML file that opens without a network, and the report of a comparison.

What stands in it is the sections' business; here they are put together with the style, the script and
plotly.js. The page tells the browser to run these two scripts only and to fetch nothing.

Of plotly.js it has its makers' own bundle of the flat charts, a third of the whole: `plotly-cartesian.min.js`
of npm's plotly.js-cartesian-dist-min, of the version that the Python package draws for (MIT:
`plotly-cartesian.LICENSE`). It is packed (`gzip -9 -n`), here and in the page, whose script unpacks it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from string import Template

from subvene.runner.experiments.results import Results
from subvene.runner.reports.markup import Html, element, join
from subvene.runner.reports.sections import SECTIONS, declared

PLOTLY = "plotly-cartesian.min.js.gz"
"""What draws the figures, in this folder."""


def render(results: Results) -> Html:
    """The page as text, the same for the same results."""
    sections = [(title, content) for title, make in SECTIONS if (content := make(results)) is not None]
    model = (declared(results).get("model") or {}).get("name")
    return page(results, "Interventions compared", model=model, summary=_summary(results), sections=sections)


def page(
    results: Results,
    what: str,
    *,
    model: str | None,
    summary: str,
    sections: Sequence[tuple[str, Html]],
    notice: Html | None = None,
) -> Html:
    """Sections put together with the style, the script and, if there are figures, plotly.js.

    Args:
        results: of the run; the experiment's name is the page's title, where it has one.
        what: the kind of results, the title without a name.
        model: the model's name, if it is known.
        summary: one line below the heading.
        sections: each with its title.
        notice: what stands before the first section.
    """
    name = results.manifest.get("name")
    named = f"{name}: {what[0].lower()}{what[1:]}" if name else what
    script = _read("page.js")
    has_figures = any('<div class="plot"' in content for _, content in sections)
    plotly = [_file(PLOTLY)] if has_figures else []
    scripts = [script, *(gzip.decompress(packed).decode() for packed in plotly)]
    text = Template(_read("page.html")).substitute(
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        style=_read("page.css"),
        title=element("title", named + (f" on {model}" if model else "")),
        heading=join([str(name) if name else what]),
        model=element("p", element("code", model), class_="model") if model else "",
        summary=element("p", *([f"{what} · "] if name else []), summary),
        contents=element("ul", *(element("li", element("a", t, href=f"#{_anchor(t)}")) for t, _ in sections)),
        sections=join(
            [
                *([notice] if notice else []),
                *(
                    element("section", element("h2", title), content, id=_anchor(title))
                    for title, content in sections
                ),
            ]
        ),
        # Not through `element`: the text of a script is never escaped, and is none but ours.
        plotly=join(
            element("script", base64.b64encode(packed).decode(), type="text/plain", id="plotly")
            for packed in plotly
        ),
        script=f"<script>{script}</script>",
    )
    made = Html(text)
    made.figures = tuple(
        replace(figure, name=f"{_anchor(title)}-{i}")
        for title, content in sections
        for i, figure in enumerate(content.figures, 1)
    )
    return made


def _summary(results: Results) -> Html:
    cells = results.conditions
    questions = len({item.key for cell in cells for item in cell.items})
    seeds = sorted({cell.seed for cell in cells if cell.seed is not None})
    folds = len({cell.fold for cell in cells})
    parts = [count(len({cell.name for cell in cells}), "condition")]
    if questions:
        parts.append(count(questions, "question"))
    parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    if folds > 1:
        parts.append(f"{folds} folds, each tested with a fit that saw only the others")
    return join([" · ".join(parts)])


def count(n: int, what: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _anchor(title: str) -> str:
    return "-".join(re.findall(r"\w+", title.lower()))


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return _file(name).decode()


def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath(name).read_bytes()
