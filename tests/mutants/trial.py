"""Running tests on a copy of the tree, with one defence taken out or none. The working tree itself is never touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.mutants.declared import ROOT, Mutant

ENDING_S = 20.0
"""A run that is over its time gets so long to stop what it started, such as a Postgres."""

TESTS_FAILED = 1
"""pytest's exit code when tests ran and some failed; a tree that cannot even be imported has another."""


class Verdict(StrEnum):
    """What became of one mutant."""

    KILLED = "killed"
    """Every named test failed."""
    SURVIVED = "survived"
    """A named test passed without the defence: it does not show what it is named for."""
    BROKEN = "broken"
    """The mutant's text is not in its file, or the tests could not run."""
    TIMED_OUT = "timed out"
    """Nothing was seen to fail within the bound."""


@dataclass(frozen=True)
class Ran:
    """One run of pytest."""

    code: int | None
    """Exit code; None when the time was over."""
    output: str
    seconds: float

    def has_failed(self, test: str) -> bool:
        """True when the test failed, for some of its parameters at least."""
        names = (f"FAILED {test}{end}" for end in ("[", " ", "\n"))
        return any(name in self.output + "\n" for name in names)


@dataclass(frozen=True)
class Result:
    """What became of one mutant, and why it is not killed."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    detail: str = ""


def copy_tree(target: Path) -> None:
    """The files of the project as they stand, committed or not; Anvil is shared, the virtual environment too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    if (ROOT / "node_modules").exists():
        (target / "node_modules").symlink_to(ROOT / "node_modules")


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> Ran:
    """Run the tests on a tree, whose modules come before the installed ones."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    # Without a cache of its own, and without a plugin that takes longer to load than most of the tests take.
    plugins = ["-p", "no:cacheprovider", "-p", "no:schemathesis"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", *plugins, *tests]
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            output, _ = run.communicate(timeout=limit_s)
            code: int | None = run.returncode
        except subprocess.TimeoutExpired:
            output, code = _end(run), None
    return Ran(code, output, time.monotonic() - began)


def _end(run: subprocess.Popen[str]) -> str:
    """Stop a run as Ctrl-C would, so that it stops what it started."""
    run.send_signal(signal.SIGINT)
    try:
        return run.communicate(timeout=ENDING_S)[0]
    except subprocess.TimeoutExpired:
        run.kill()
        return run.communicate()[0]


def is_own(tree: Path) -> bool:
    """True when tests on the tree import the tree's modules and not the installed ones."""
    program = "import chains, ledger, indexer, notifier; print(chains.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tree)}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    return Path(told.stdout.strip()).is_relative_to(tree)


def try_mutant(tree: Path, mutant: Mutant, limit_s: float) -> Result:
    """Take the defence out of the tree, run the tests that must see it, and put it back."""
    file = tree / mutant.file
    whole = file.read_text()
    try:
        mutated = mutant.applied_to(whole)
    except ValueError as error:
        return Result(mutant, Verdict.BROKEN, 0.0, str(error))
    _write(file, mutated)
    try:
        ran = run_tests(tree, mutant.tests, limit_s)
    finally:
        _write(file, whole)
    return _judged(mutant, ran)


def _write(file: Path, text: str) -> None:
    """Each time with another time of change: Python knows by that, in whole seconds, what it has compiled already."""
    changed_s = file.stat().st_mtime + 2
    file.write_text(text)
    os.utime(file, (changed_s, changed_s))


def _judged(mutant: Mutant, ran: Ran) -> Result:
    if ran.code is None:
        return Result(mutant, Verdict.TIMED_OUT, ran.seconds, ran.output[-2000:])
    passed = [test for test in mutant.tests if not ran.has_failed(test)]
    if ran.code not in (0, TESTS_FAILED):
        return Result(mutant, Verdict.BROKEN, ran.seconds, ran.output[-2000:])
    if passed:
        return Result(mutant, Verdict.SURVIVED, ran.seconds, "passes all the same: " + ", ".join(passed))
    return Result(mutant, Verdict.KILLED, ran.seconds)
