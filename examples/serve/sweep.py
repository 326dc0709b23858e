"""Asks a running `subvene serve` for one answer at several strengths at once, and prints the receipts.

subvene run examples/quickstart.yaml -o out
subvene serve cheerful=out/artifact
python examples/serve/sweep.py [NAME]

Another server than the one above: OPENAI_BASE_URL, and its key: OPENAI_API_KEY.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

NAME = sys.argv[1] if len(sys.argv) > 1 else "cheerful"
STRENGTHS = (-2.0, 0.0, 2.0)
client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


def ask(strength: float) -> openai.types.chat.ChatCompletion:
    """One request; those that arrive together are one batch."""
    return client.chat.completions.create(
        model=f"{NAME}={strength}",
        messages=[{"role": "user", "content": "How was your day?"}],
        max_tokens=32,
        temperature=0,
    )


with ThreadPoolExecutor() as pool:
    for strength, answer in zip(STRENGTHS, pool.map(ask, STRENGTHS), strict=True):
        receipt = answer.model_extra["subvene"]["receipt"][0]
        print(f"{strength:+g}: {answer.choices[0].message.content}")
        print(f"    edited {receipt['edited']}, mean ‖Δ‖/‖h‖ {receipt['mean_relative']:.3f}")
