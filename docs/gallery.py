"""The reports of the runs behind docs/results, made of their raw results while the site is built.

They are not in the repository: a report is made of `NAME/results.json.gz` in a second, and would be stored
anew with every change of its look.
"""

from __future__ import annotations

import re
from pathlib import Path

from recompute import PAGES as RESULTS
from recompute import RAW, read_raw

from subvene.runner.reports.publish import PAGE, REPORTS

_HEADING = re.compile(r"^(# .+|## \[.+\]\(([\w-]+)\.md\))$", re.MULTILINE)


def reports() -> dict[str, str]:
    """Every report, by its path in the site: one for every raw results that were kept."""
    made = {}
    for path in sorted(RESULTS.glob(f"*/*{RAW}")):
        results = read_raw(path)
        page = str(REPORTS[results.kind].page(results))
        # A table too large for a page lies in the run's folder, which is not in the site.
        made[f"results/{_report(path)}"] = re.sub(r'<a href="tables/[^"]*">([^<]*)</a>', r"\1", page)
    return made


def with_reports(page: str, markdown: str) -> str:
    """A page of results with links to its reports, or what keeps it from having one.

    Args:
        page: its path in docs/; below the headings of the index stands the same of the pages that it names.
        markdown: the page.
    """
    name = Path(page).stem

    def linked(found: re.Match[str]) -> str:
        of = found[2] or (name if name != "index" else None)
        return f"{found[1]}\n\n{_words(of)}" if of and (RESULTS / f"{of}.md").is_file() else found[1]

    return _HEADING.sub(linked, markdown)


def _words(name: str) -> str:
    """What a reader of a page is told of its reports."""
    kept = sorted((RESULTS / name).glob(f"*{RAW}"), key=lambda path: len(path.name))
    if kept:
        names = (path.name.removesuffix(RAW).rstrip("-").replace("-", " ") or "the run" for path in kept)
        links = ", ".join(f"[{name}]({_report(path)})" for name, path in zip(names, kept, strict=True))
        return f"**Report**, made of the raw results: {links}."
    tables = sorted(path.name for path in (RESULTS / name).glob("*.csv*"))
    only = (
        f"of this run only tables were kept ({', '.join(tables)})"
        if tables
        else "this run's raw results were not kept"
    )
    return f"*No report: {only}; a report is made of `results.json`, which has items, receipts and fits too.*"


def _report(raw: Path) -> str:
    """Of raw results, where their report lies beside the pages of results."""
    return f"{raw.parent.name}/{raw.name.removesuffix(RAW)}{PAGE}"
