"""Whether a tag may be released: tag, version, citation, changelog and address say the same.

`python tests/support/release.py --tag v1.2.0 --source https://…` prints what does not agree, and fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def disagreements(tag: str, source: str, root: Path = ROOT) -> list[str]:
    """What keeps a tag from being released.

    Args:
        tag: `vX.Y.Z`.
        source: the address of the repository that it stands in.
        root: the checkout.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    version, declared = project["version"], project["urls"]["Source"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    dated = rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$"
    problems = {
        f"tag {tag}: expected v{version}, the version of pyproject.toml": tag == f"v{version}",
        f"CITATION.cff: expected version: {version}": cited is not None and cited[1] == version,
        f"CHANGELOG.md: expected a heading `## {version} - YYYY-MM-DD`": bool(
            re.search(dated, (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
        ),
        f"pyproject.toml: [project.urls] says {declared}, the tag stands in {source}": source == declared,
    }
    return [problem for problem, agrees in problems.items() if not agrees]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--source", required=True)
    given = parser.parse_args()
    found = disagreements(given.tag, given.source)
    print("\n".join(found) or f"{given.tag}: agrees")
    sys.exit(bool(found))
