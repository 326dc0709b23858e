"""The ledger: units are done once, a kill loses one at most, and a faulty file is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from subvene.runner.ledger import Ledger, LedgerError, digest


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


def test_a_faulty_line_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.do({"unit": "a"}, lambda: {"value": 1})
    path = tmp_path / "units.jsonl"
    faulty = path.read_bytes() + b"not json\n"
    path.write_bytes(faulty)
    with pytest.raises(LedgerError, match=r"units\.jsonl, line 2: not a unit of work"), Ledger(tmp_path):
        pass
    assert path.read_bytes() == faulty


def test_two_processes_do_not_write_one_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path):
        code = (
            "from pathlib import Path; from subvene.runner.ledger import Ledger; "
            f"Ledger(Path({str(tmp_path)!r})).__enter__()"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is running this experiment" in other.stderr


def test_a_process_killed_in_its_work_loses_that_unit_alone(tmp_path: Path) -> None:
    code = f"""
    import time
    from pathlib import Path
    from subvene.runner.ledger import Ledger
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
