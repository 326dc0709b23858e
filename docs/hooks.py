"""What mkdocs does besides rendering pages: it adds those made of code, examples, results; it leads links.

The pages are written for a reader of the repository, so they link to files beside docs/. In the site an
example is a page of its own, and every other such file a link into the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gallery import reports, with_reports
from reference import PAGES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference and a page for every example."""
    from mkdocs.structure.files import File

    made = {path: page() for path, page in PAGES.items()}
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        made[f"examples/{path.stem}.md"] = f"# {path.name}\n\n```yaml\n{path.read_text('utf-8')}```\n"
    made |= reports()
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the example's page or into the repository.

    Raises:
        FileNotFoundError: a page links to what is not in the checkout.
    """
    folder = posixpath.dirname(page.file.src_uri)
    if folder == "results":
        markdown = with_reports(page.file.src_uri, markdown)

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        path = ROOT / target
        is_left_out = target.endswith(".schema.json")  # of the site, by `exclude_docs`
        if target.startswith("docs/") and not path.is_dir() and not is_left_out:
            return found[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: links to {found[2]}, which is not in the checkout")
        if path.parent == ROOT / "examples" and path.suffix == ".yaml":
            return f"{found[1]}{posixpath.relpath(f'examples/{path.stem}.md', folder or '.')}{found[4]}"
        kind = "tree" if path.is_dir() else "blob"
        return f"{found[1]}{config.repo_url}/{kind}/main/{target}{found[3] or ''}{found[4]}"

    return LINK.sub(led, markdown)
