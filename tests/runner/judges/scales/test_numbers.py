"""A score from 0 to 100: which tokens count, and digits one by one against every sequence of tokens."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from subvene.runner.judges import Score
from subvene.runner.judges.scales.numbers import (
    Distribution,
    Top,
    begins_refusal,
    digit_by_digit,
    number,
    says_refusal,
    splits_numbers,
    whole_numbers,
    written_score,
)
from subvene.runner.judges.scales.zero_to_hundred import told_apart


@pytest.mark.parametrize(
    ("token", "k"),
    [
        *[("57", 57), (" 57", 57), ("▁57", 57), ("Ġ57", 57), ("0", 0), ("100", 100)],
        *[("057", None), ("5.", None), ("-3", None), ("101", None), ("00", None), ("", None), (" ", None)],
        *[("57 ", None), ("5\n", None), ("٥", None), ("²", None), ("1e1", None), ("+5", None), ("1_0", None)],
    ],
)
def test_tokens_that_are_numbers(token: str, k: int | None) -> None:
    assert number(token) == k


def test_the_published_expectation() -> None:
    """Σ k·p(k) / Σ p(k); a number that comes as two tokens has the probability of both."""
    top = [("57", 0.3), (" 57", 0.1), ("90", 0.2), ("057", 0.2), ("101", 0.1), ("Sure", 0.1)]
    found = whole_numbers(top)
    assert found.numbers == pytest.approx({57: 0.4, 90: 0.2})
    score = found.score()
    assert score.value == pytest.approx((57 * 0.4 + 90 * 0.2) / 0.6)
    assert (score.refused, score.reason) == (False, None)


@pytest.mark.parametrize(("mass", "scored"), [(0.25, True), (0.2499, False)])
def test_too_little_mass_is_no_score(mass: float, scored: bool) -> None:
    score = whole_numbers([("50", mass), ("The", 0.7)]).score()
    assert score.value == (50.0 if scored else None)
    assert scored or score.reason == (
        "the numbers 0 to 100 have 0.25 of the probability of the judge's reply, less than 0.25; it begins "
        "with 'The', '50'"
    )


def test_refusals() -> None:
    assert whole_numbers([("REF", 0.9), ("0", 0.05)]).score() == Score(
        None, True, "the judge says that the response is a refusal"
    )
    # A score that the published code would take is given all the same, and the refusal is recorded.
    assert whole_numbers([("10", 0.4), (" Ref", 0.5)]).score() == Score(10.0, True)
    assert whole_numbers([("10", 0.5), ("ref", 0.4)]).score() == Score(10.0, False)
    assert whole_numbers([("10", 0.5), ("REFUSAL", 0.4)]).score(refused=True) == Score(10.0, True)
    assert all(map(begins_refusal, ("REF", "ref", " REFUSAL", "▁Refus", '"REFUSAL', "Refusals")))
    assert not any(map(begins_refusal, ("R", "Rating", "Response", "", " ", "**", "5")))
    assert says_refusal("REFUSAL")
    assert says_refusal(" **Refusal**: no")
    assert not says_refusal("Ref 5")


def test_whether_numbers_are_split_shows_in_the_reply() -> None:
    assert splits_numbers(["5", " 7", "The"])
    assert not splits_numbers(["5", "57", "The"])
    assert not splits_numbers(["The", "057"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("57", 57.0), (" 57.", 57.0), ("**8**", 8.0), ("100/100", 100.0), ("Score: 57", None)],
        *[("057", None), ("5.5", None), ("101", None), ("-3", None), ("1000", None), ("", None)],
    ],
)
def test_a_number_that_is_written(text: str, value: float | None) -> None:
    found = written_score(text)
    assert found.value == value
    assert (found.reason is None) == (value is not None)


TOKENS = ("5", "7", "57", "0", "1", "10", "100", "00", "075", " ", " 1", "▁57", "x", "5x", "REF")


def said(path: tuple[str, ...]) -> Top:
    """A made-up language model: the next token's distribution depends on all before it."""
    draw = random.Random(hashlib.sha256(repr(path).encode()).hexdigest())
    weights = [draw.random() ** 2 for _ in TOKENS]
    return [(token, weight / sum(weights)) for token, weight in zip(TOKENS, weights, strict=True)]


def test_digit_by_digit_is_the_sum_over_all_sequences_of_tokens() -> None:
    """Every way to spell a number, with tokens of one to three digits and a space before it or not."""
    expected = dict.fromkeys(range(101), 0.0)
    refusal = said(())[-1][1] + next(p for token, p in said(()) if token == " ") * said((" ",))[-1][1]
    for length in range(1, 5):
        for path in itertools.product(TOKENS, repeat=length):
            text = "".join(path).replace("▁", " ").removeprefix(" ")
            if text not in map(str, range(101)) or (path[0] == " " and length == 1):
                continue
            p = 1.0
            for i, token in enumerate(path):
                p *= dict(said(path[:i]))[token]
            expected[int(text)] += p * sum(q for token, q in said(path) if not token[0].isdigit())
    (found,) = digit_by_digit(1, lambda asked: [said(path) for _, path in asked], floor=0.0, ends=True)
    assert sum(expected.values()) > 0.1
    assert found.numbers == pytest.approx({k: p for k, p in expected.items() if p})
    assert found.refusal == pytest.approx(refusal)


def test_replies_are_followed_apart_and_together() -> None:
    calls: list[list[tuple[int, tuple[str, ...]]]] = []

    def following(asked: list[tuple[int, tuple[str, ...]]]) -> list[Top]:
        calls.append(asked)
        return [said((*map(str, range(i)), *path)) for i, path in asked]

    found = digit_by_digit(3, following, floor=0.0, ends=True)
    for i, one in enumerate(found):
        (alone,) = digit_by_digit(
            1, lambda asked, i=i: following([(i, path) for _, path in asked]), floor=0.0, ends=True
        )
        assert one == alone
    assert [len({len(path) for _, path in asked}) for asked in calls] == [1] * len(calls)


def test_what_is_unlikely_is_not_followed_and_two_digits_are_complete() -> None:
    asked: list[tuple[str, ...]] = []
    replies: dict[tuple[str, ...], Top] = {
        (): [("5", 0.5), ("1", 0.4), ("9", 0.005), ("x", 0.095)],
        ("5",): [("7", 0.6), ("x", 0.4)],
        ("1",): [("0", 0.9), (".", 0.1)],
        ("1", "0"): [("0", 0.25), ("x", 0.5)],
    }

    def following(level: list[tuple[int, tuple[str, ...]]]) -> list[Top]:
        asked.extend(path for _, path in level)
        return [replies[path] for _, path in level]

    (found,) = digit_by_digit(1, following, floor=0.01, ends=False)
    assert asked == [(), ("5",), ("1",), ("1", "0")]
    assert found.numbers == pytest.approx({57: 0.3, 5: 0.2, 1: 0.04, 10: 0.36 * 0.75, 100: 0.09})


def test_numbers_that_are_none() -> None:
    nan = float("nan")
    (found,) = digit_by_digit(1, lambda asked: [[("5", nan)] for _ in asked], floor=1e-8, ends=True)
    assert found.score().value is None
    assert Distribution({5: nan}).score().value is None


def test_how_well_two_sides_are_told_apart() -> None:
    found = told_apart([90.0, 50.0, None, 20.0], [10.0, 50.0, 20.0])
    pairs = [1, 1, 1, 1, 0.5, 1, 1, 0, 0.5]
    assert found == {"auc": pytest.approx(sum(pairs) / 9), "accuracy": pytest.approx(4 / 6), "n": 6}
    assert told_apart([None], [3.0]) is None
