"""Fit, push, pull in a fresh process, generate: `python examples/share/share.py user/name`.

Needs a token that may write (`hf auth login`, or HF_TOKEN). The repository is made private if it is new.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SPEC = Path(__file__).with_name("cheerful.yaml")
PROMPT = "What do you think about the weather?"


def send(repository: str) -> None:
    """One colleague: fit the vector and push it."""
    from subvene.runner import fit

    m = fit(SPEC)
    commit = m.push_to_hub(repository, private=True, licence="apache-2.0", commit_message="A cheerful manner")
    print(f"pushed   {commit.commit_url}")


def receive(repository: str) -> None:
    """Another one, somewhere else: all there is to know is the repository's name."""
    from subvene.runner import IntervenedModel

    m = IntervenedModel.from_pretrained(repository)
    print(f"answer   {m.generate([PROMPT], max_new_tokens=24, do_sample=False)[0]}")
    print(f"edited   {m.receipt[0].tokens} tokens")


def main() -> None:
    """Send here, pull and receive in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", metavar="USER/NAME")
    parser.add_argument("--receive", action="store_true", help="only the second half")
    given = parser.parse_args()
    if given.receive:
        receive(given.repository)
        return
    send(given.repository)
    with tempfile.TemporaryDirectory() as scratch:
        command = [Path(sys.executable).with_name("subvene"), "pull", given.repository]
        subprocess.run([*command, "-o", Path(scratch, "pulled")], check=True)
    subprocess.run([sys.executable, __file__, given.repository, "--receive"], check=True)


if __name__ == "__main__":
    main()
