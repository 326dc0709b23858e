"""Asks a running `subvene serve` for one answer at several strengths, and prints the receipts.

subvene run examples/quickstart.yaml -o out
subvene serve cheerful=out/artifact
python examples/serve/sweep.py
"""

from concurrent.futures import ThreadPoolExecutor

import openai

client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
STRENGTHS = (-2.0, 0.0, 2.0)


def ask(strength: float) -> openai.types.chat.ChatCompletion:
    """One request; those that arrive together are one batch."""
    return client.chat.completions.create(
        model=f"cheerful={strength}",
        messages=[{"role": "user", "content": "How was your day?"}],
        max_tokens=32,
        temperature=0,
    )


with ThreadPoolExecutor() as pool:
    for strength, answer in zip(STRENGTHS, pool.map(ask, STRENGTHS), strict=True):
        receipt = answer.model_extra["subvene"]["receipt"][0]
        print(f"{strength:+g}: {answer.choices[0].message.content}")
        print(f"    edited {receipt['edited']}, mean ‖Δ‖/‖h‖ {receipt['mean_relative']:.3f}")
