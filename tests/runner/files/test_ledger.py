"""The ledger: units are done once, a kill loses one at most, and a faulty file is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.files.ledger import Ledger, LedgerError, LedgerWarning, digest


def test_a_unit_is_done_once_and_what_it_gave_comes_back(tmp_path: Path) -> None:
    done = []

    def work() -> dict[str, float]:
        done.append(1)
        return {"value": 1 / 3}

    with Ledger(tmp_path) as ledger:
        assert not ledger.has({"unit": "a", "seed": 1})
        assert ledger.do({"unit": "a", "seed": 1}, work) == {"value": 1 / 3}
        assert ledger.do({"seed": 1, "unit": "a"}, work) == {"value": 1 / 3}
    with Ledger(tmp_path) as ledger:
        assert ledger.has({"unit": "a", "seed": 1})
        assert ledger.do({"unit": "a", "seed": 1}, work) == {"value": 1 / 3}
        assert len(done) == 1
        ledger.do({"unit": "a", "seed": 2}, work)
    assert len(done) == 2
    lines = [json.loads(line) for line in (tmp_path / "units.jsonl").read_text().splitlines()]
    assert [line["unit"] for line in lines] == [{"unit": "a", "seed": 1}, {"unit": "a", "seed": 2}]
    assert lines[0]["key"] == digest({"seed": 1, "unit": "a"})


def test_work_that_fails_leaves_no_unit(tmp_path: Path) -> None:
    def work() -> dict[str, float]:
        raise RuntimeError("out of memory")

    with Ledger(tmp_path) as ledger:
        with pytest.raises(RuntimeError, match="out of memory"):
            ledger.do({"unit": "a"}, work)
        assert not ledger.has({"unit": "a"})
    assert (tmp_path / "units.jsonl").read_bytes() == b""


def test_a_result_that_is_not_finite_is_refused_and_leaves_no_half_line(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        with pytest.raises(LedgerError, match="not finite"):
            ledger.do({"unit": "divergence"}, lambda: {"kl": float("nan")})
        ledger.do({"unit": "b"}, lambda: {"kl": 1.0})
    with Ledger(tmp_path) as ledger:
        assert list(ledger.results.values()) == [{"kl": 1.0}]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path, cut: int) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.do({"unit": "a"}, lambda: {"value": 1})
        ledger.do({"unit": "b"}, lambda: {"value": 2})
    path = tmp_path / "units.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(tmp_path) as ledger:
        assert ledger.has({"unit": "a"})
        assert not ledger.has({"unit": "b"})
        ledger.do({"unit": "c"}, lambda: {"value": 3})
    with Ledger(tmp_path) as ledger:
        assert sorted(result["value"] for result in ledger.results.values()) == [1, 3]


def fill(folder: Path, *names: str) -> Path:
    with Ledger(folder) as ledger:
        for i, name in enumerate(names):
            ledger.do({"unit": name}, partial(dict, value=i, about=[name]))
    return folder / "units.jsonl"


def swap(lines: list[str]) -> list[str]:
    first, second = (json.loads(line) for line in lines[:2])
    first["result"], second["result"] = second["result"], first["result"]
    return [json.dumps(first), json.dumps(second), *lines[2:]]


def forged(lines: list[str]) -> list[str]:
    """A second record of a unit that is whole and says something else."""
    other = json.loads(lines[0]) | {"result": {"value": 9}}
    del other["sha256"]
    return [*lines, json.dumps(other | {"sha256": digest(other)})]


def renamed(lines: list[str]) -> list[str]:
    """A record under another unit's key, its checksum made anew."""
    record = json.loads(lines[0]) | {"key": digest({"unit": "c"})}
    del record["sha256"]
    return [json.dumps(record | {"sha256": digest(record)}), *lines[1:]]


@pytest.mark.parametrize(
    ("spoil", "lost", "told"),
    [
        (swap, "ab", "2 of 3 records"),
        (lambda lines: [lines[0].replace('"value": 0', '"value": 7'), *lines[1:]], "a", "1 of 3 records"),
        (lambda lines: [lines[0].replace('"seconds": ', '"seconds": 1'), *lines[1:]], "a", "1 of 3 records"),
        (lambda lines: [*lines[:2], "not json"], "c", "1 of 3 records"),
        (lambda lines: [*lines, "[" * 100_000], "", "1 of 4 records"),
        (lambda lines: [*lines, "[1]"], "", "1 of 4 records"),
        (lambda lines: [lines[0][:-30], *lines[1:]], "a", "1 of 3 records"),
        (forged, "a", "2 of 4 records"),
        (renamed, "a", "1 of 3 records"),
    ],
)
def test_a_record_that_does_not_match_is_done_again_and_nothing_else(
    tmp_path: Path, spoil: Any, lost: str, told: str
) -> None:
    path = fill(tmp_path, *"abc")
    whole = path.read_text().splitlines()
    spoilt = spoil(whole)
    path.write_text("".join(line + "\n" for line in spoilt))
    done = []

    def work(i: int, name: str) -> dict[str, Any]:
        done.append(name)
        return {"value": i, "about": [name]}

    warned = pytest.warns(LedgerWarning, match=rf"units\.jsonl: {told} do not match their checksum")
    with warned, Ledger(tmp_path) as ledger:
        for i, name in enumerate("abc"):
            # Done again or not, every unit has its own result.
            assert ledger.do({"unit": name}, partial(work, i, name))["value"] == i
    assert "".join(done) == lost
    # Nothing is lost, and the next run has nothing to say.
    rejected = (tmp_path / "units.rejected.jsonl").read_text().splitlines()
    assert set(spoilt) <= {*rejected, *path.read_text().splitlines()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Ledger(tmp_path) as ledger:
            assert len(ledger.results) == 3


@pytest.mark.parametrize("order", ["AB", "ABA", "BAB", "AABB", "ABAB", "ABBA"])
def test_of_records_that_contradict_each_other_none_is_believed(tmp_path: Path, order: str) -> None:
    path = fill(tmp_path, "a", "b")
    mine, other = path.read_text().splitlines()
    lines = {"A": mine, "B": forged([mine])[-1]}
    path.write_text("".join(f"{line}\n" for line in [*(lines[one] for one in order), other]))
    warned = pytest.warns(LedgerWarning, match="records do not match their checksum")
    with warned, Ledger(tmp_path) as ledger:
        assert [ledger.has({"unit": name}) for name in "ab"] == [False, True]
        assert ledger.do({"unit": "a"}, lambda: {"value": 5}) == {"value": 5}
    rejected = (tmp_path / "units.rejected.jsonl").read_text().splitlines()
    assert set(rejected) == set(lines.values())
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_stands_twice_is_one_record(tmp_path: Path) -> None:
    path = fill(tmp_path, "a", "b")
    path.write_bytes(path.read_bytes() * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Ledger(tmp_path) as ledger:
            assert [ledger.has({"unit": name}) for name in "ab"] == [True, True]


def test_a_ledger_without_checksums_is_done_again_and_says_so(tmp_path: Path) -> None:
    old = {"key": digest({"unit": "a"}), "unit": {"unit": "a"}, "seconds": 0.1, "result": {"value": 3}}
    (tmp_path / "units.jsonl").write_text(json.dumps(old) + "\n")
    warned = pytest.warns(LedgerWarning, match="1 of 1 records are of a subvene that wrote no checksums")
    with warned, Ledger(tmp_path) as ledger:
        assert ledger.do({"unit": "a"}, lambda: {"value": 4}) == {"value": 4}


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = fill(tmp_path, "a")
    newer = path.read_text().replace('"format": 2', '"format": 3')
    path.write_text(newer)
    with pytest.raises(LedgerError, match=r"newer subvene \(format 3, this one reads 2\)"), Ledger(tmp_path):
        pass
    assert path.read_text() == newer


def test_a_unit_that_lacks_verdicts_is_not_finished(tmp_path: Path) -> None:
    asked = []

    def judge(missing: int) -> dict[str, Any]:
        asked.append(missing)
        return {"verdicts": [True], "missing": missing}

    unit = {"unit": "judgement"}
    with Ledger(tmp_path) as ledger:
        assert ledger.do(unit, lambda: judge(2))["missing"] == 2
        assert not ledger.has(unit)
        # Once in a run: the same judge has just been asked.
        assert ledger.do(unit, lambda: judge(0))["missing"] == 2
        assert ledger.unfinished.keys() == {digest(unit)}
    assert ledger.path.read_bytes() == b""
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            assert ledger.do(unit, lambda: judge(0))["missing"] == 0
    assert asked == [2, 0]


def test_two_processes_do_not_write_one_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path):
        code = (
            "from pathlib import Path; from subvene.runner.files.ledger import Ledger; "
            f"Ledger(Path({str(tmp_path)!r})).__enter__()"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is running this experiment" in other.stderr


def test_a_process_killed_in_its_work_loses_that_unit_alone(tmp_path: Path) -> None:
    code = f"""
    import time
    from pathlib import Path
    from subvene.runner.files.ledger import Ledger
    with Ledger(Path({str(tmp_path)!r})) as ledger:
        for i in range(3):
            ledger.do({{"unit": i}}, lambda: {{"value": i}})
        ledger.do({{"unit": 3}}, lambda: time.sleep(600))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    path = tmp_path / "units.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.is_file() and path.read_bytes().count(b"\n") == 3):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Ledger(tmp_path) as ledger:
        assert [ledger.has({"unit": i}) for i in range(4)] == [True, True, True, False]


def test_units_done_together_are_recorded_together(tmp_path: Path) -> None:
    identities = [{"unit": "a", "n": n} for n in range(3)]

    def work(missing: list[int]) -> list[dict[str, int]]:
        return [{"value": 10 * i} for i in missing]

    with Ledger(tmp_path) as ledger:
        ledger.do(identities[1], lambda: {"value": 7})
        assert ledger.do_together([*identities, identities[0]], work) == [0, 2]
        assert ledger.do_together(identities, work) == []
    with Ledger(tmp_path) as again:
        assert [again.do(one, dict)["value"] for one in identities] == [0, 7, 20]


def test_of_units_done_together_none_is_recorded_where_one_is_not_finite(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        with pytest.raises(LedgerError, match="not finite"):
            ledger.do_together([{"unit": "a"}, {"unit": "b"}], lambda _: [{"v": 1.0}, {"v": float("nan")}])
        assert not ledger.has({"unit": "a"})
