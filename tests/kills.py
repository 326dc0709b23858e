"""Kills real runs of every kind, takes them up again, and compares all tables with those of undisturbed runs.

`make test-kill` runs forty kills; `--kills 4` a short form, as `tests/test_kills.py` does. The runs are the
command's own processes on a tiny model; signals are SIGTERM, SIGINT and SIGKILL; the moments are spread over
the whole of a run: its first seconds too, while it writes its first files, and after its last unit.
Everything is drawn from `--seed`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import loopback
from forked import Forked
from small_experiments import KINDS, Scripted, write_experiments

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@dataclass
class Kill:
    """One run that was killed, some times over, and taken up again.

    Attributes:
        kind: of experiment.
        signals: what ended it, and when: seconds after the start, or the file that had come. A signal that
            came when the run had ended is none.
        differences: tables that are not byte for byte those of the undisturbed run.
        leftovers: temporary files that the last run left.
        failure: what the last run said if it did not end well.
    """

    kind: str
    signals: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def right(self) -> bool:
        """Whether nothing of the kill is to be seen."""
        return not (self.differences or self.leftovers or self.failure)


class Runs:
    """Experiments in a folder, and how long each takes undisturbed.

    Args:
        folder: where specs, model and runs are.
        url: of the judge.
        kinds: of experiments.
    """

    def __init__(self, folder: Path, url: str, kinds: list[str]) -> None:
        self.folder, self.kinds = folder, kinds
        self.seconds: dict[str, float] = {}
        write_experiments(folder, url, kinds)

    def whole(self, kind: str) -> None:
        """The undisturbed run."""
        begun = time.monotonic()
        done = self._start(kind, "whole", "whole").communicate()
        self.seconds[kind] = time.monotonic() - begun
        if not self._tables(self.output(kind, "whole")):
            raise RuntimeError(f"{kind}: the undisturbed run failed:\n{done[1]}")

    def output(self, kind: str, name: str) -> Path:
        """A run's folder."""
        return self.folder / f"out-{name}" / kind

    def kill(self, kind: str, number: int, draw: random.Random, times: int) -> Kill:
        """Kill a run at drawn moments, take it up each time, and compare."""
        found, name = Kill(kind), f"kill{number}"
        for _ in range(times):
            sent = draw.choice(SIGNALS)
            process = self._start(kind, name, name)
            moment, what = self._moment(kind, name, draw)
            begun = time.monotonic()
            while process.poll() is None and not moment(time.monotonic() - begun):
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(sent)
            process.communicate()
            if process.returncode:
                found.signals.append(f"{sent.name} at {what}")
        last = self._start(kind, name, name)
        said = last.communicate()[1]
        if last.returncode:
            found.failure = f"exit code {last.returncode}: {said[-1500:]}"
            return found
        output, whole = self.output(kind, name), self._tables(self.output(kind, "whole"))
        tables = self._tables(output)
        found.differences = sorted(n for n in whole.keys() | tables.keys() if whole.get(n) != tables.get(n))
        hidden = [*output.parent.rglob(".*-????????????"), *output.parent.rglob("*.old")]
        found.leftovers = [str(path) for path in [*hidden, *output.rglob(".baked-*")]]
        if found.right:
            shutil.rmtree(output.parent)
        return found

    def _moment(self, kind: str, name: str, draw: random.Random) -> tuple[Callable[[float], bool], str]:
        """When to kill: a file that comes, a number of units, or a time of the run."""
        output, way = self.output(kind, name), draw.random()
        if way < 0.4:
            chosen = draw.choice((".lock", "manifest.json", "units.jsonl", "experiment.yaml", "results.json"))
            pause = draw.choice((0.0, draw.random() * 0.3))
            seen: list[float] = []

            def came(seconds: float) -> bool:
                if not seen and (output / chosen).exists():
                    seen.append(seconds)
                return bool(seen) and seconds >= seen[0] + pause

            return came, f"{chosen} + {pause:.2f} s"
        share = draw.random() ** (2 if way < 0.7 else 1)
        at = share * self.seconds[kind]
        return (lambda seconds: seconds >= at), f"{at:.2f} s"

    def _start(self, kind: str, name: str, cache: str) -> subprocess.Popen[str] | Forked:
        output = self.output(kind, name)
        output.parent.mkdir(parents=True, exist_ok=True)
        own = {"SUBVENE_CACHE": str(self.folder / f"cache-{cache}"), "OMP_NUM_THREADS": "1"}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return self.started(["run", f"{kind}.yaml", "-o", str(output)], own | quiet)

    def started(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str] | Forked:
        """The command, in a process of its own."""
        return subprocess.Popen(
            [Path(sys.executable).with_name("subvene"), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _tables(output: Path) -> dict[str, bytes]:
        """What a run's tables hold by file name, and the tensors that it kept."""
        found = {path.name: path.read_bytes() for path in (output / "tables").glob("*")}
        for path in output.glob("artifact*/**/tensors.safetensors"):
            found[str(path.relative_to(output))] = path.read_bytes()
        return found


@contextmanager
def runs(kinds: list[str], of: type[Runs] = Runs) -> Iterator[Runs]:
    """Experiments in a temporary folder, which goes when the block ends; each run once, undisturbed."""
    # A shell's background job ignores SIGINT, and so would every process that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="subvene-kills-") as folder, loopback.serve(Scripted) as url:
            found = of(Path(folder), url, kinds)
            for kind in kinds:
                found.whole(kind)
            yield found
    finally:
        signal.signal(signal.SIGINT, before)


def main(arguments: list[str] | None = None) -> int:
    """Kill as often as was asked for; 1 if a run did not come out as the undisturbed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    asked = parser.parse_args(arguments)
    begun, wrong, signals = time.monotonic(), 0, Counter[str]()
    with runs(asked.kinds) as experiments:
        for kind, seconds in experiments.seconds.items():
            print(f"{kind}: {seconds:.1f} s undisturbed", flush=True)
        draws, lock, number = random.Random(asked.seed), threading.Lock(), 0

        def work() -> None:
            nonlocal wrong, number
            while True:
                with lock:
                    left = asked.kills - signals.total()
                    if left <= 0:
                        return
                    mine, kind = number, asked.kinds[number % len(asked.kinds)]
                    number += 1
                    # Some are killed again when they are taken up.
                    draw, times = random.Random(draws.random()), 1 + (left > 1 and draws.random() < 0.3)
                found = experiments.kill(kind, mine, draw, times)
                with lock:
                    signals.update(one.split()[0] for one in found.signals)
                    wrong += not found.right
                    state = "right" if found.right else f"WRONG: {found}"
                    print(
                        f"{mine:2} {kind}: {', then '.join(found.signals) or 'not hit'}: {state}", flush=True
                    )

        threads = [threading.Thread(target=work) for _ in range(asked.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counted = ", ".join(f"{n} {name}" for name, n in sorted(signals.items()))
    seconds = time.monotonic() - begun
    print(f"{signals.total()} kills ({counted}) in {number} runs, {wrong} wrong, {seconds:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
