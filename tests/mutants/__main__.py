"""`make mutants`: see every named test pass, take each defence out in turn, and see its tests fail.

`python -m tests.mutants [WORD ...]` tries those that have one of the words in their name, or belong to a row of that
name. Exits with 1 when a mutant survives, is over its time, or is not there any more.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.declared import Mutant, read_mutants
from tests.mutants.trial import Ran, Result, Verdict, copy_tree, is_own, run_tests, try_mutant

MUTANT_LIMIT_S = 120.0
WHOLE_LIMIT_S = 900.0
"""For all named tests together, with nothing taken out."""


class Trees:
    """Copies of the tree, one for each run at a time."""

    def __init__(self, copies: Sequence[Path]) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        for copy in copies:
            self._free.put(copy)

    @contextmanager
    def one(self) -> Iterator[Path]:
        """A copy that nobody else uses meanwhile."""
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)


def main(words: Sequence[str]) -> int:
    """Try the mutants that the words name; all without any."""
    mutants = [m for m in read_mutants() if not words or any(word in m.name or word in m.rows for word in words)]
    if not mutants:
        print("no mutant has such a name or row")
        return 1
    began = time.monotonic()
    cores = os.cpu_count() or 1
    with ExitStack() as stack:
        copies = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chainbell-mutants-"))) for _ in range(cores)
        ]
        for copy in copies:
            copy.chmod(0o755)
            copy_tree(copy)
            if not is_own(copy):
                print(f"tests on {copy} would import other modules than its own")
                return 1
        pool = stack.enter_context(ThreadPoolExecutor(cores))
        trees = Trees(copies)
        if not _all_pass(pool, trees, sorted({test for mutant in mutants for test in mutant.tests}), cores):
            return 1
        results = list(map(_told, pool.map(lambda mutant: _try(trees, mutant), mutants)))
    return _summary(results, time.monotonic() - began)


def _all_pass(pool: ThreadPoolExecutor, trees: Trees, tests: Sequence[str], cores: int) -> bool:
    """With nothing taken out every named test passes: else its failing shows nothing."""
    shares = [share for share in (tests[place::cores] for place in range(cores)) if share]
    runs = list(pool.map(lambda share: _run(trees, share), shares))
    failed = [run for run in runs if run.code != 0]
    for run in failed:
        print(run.output[-4000:])
    seconds = max(run.seconds for run in runs)
    print(f"{len(tests)} tests with nothing taken out: {'not all pass' if failed else 'all pass'} ({seconds:.0f} s)")
    return not failed


def _run(trees: Trees, tests: Sequence[str]) -> Ran:
    with trees.one() as tree:
        return run_tests(tree, tests, WHOLE_LIMIT_S)


def _try(trees: Trees, mutant: Mutant) -> Result:
    with trees.one() as tree:
        return try_mutant(tree, mutant, MUTANT_LIMIT_S)


def _told(result: Result) -> Result:
    mutant = result.mutant
    print(f"{result.verdict:<9} {result.seconds:5.1f} s  {mutant.name} ({', '.join(mutant.rows)})", flush=True)
    if result.detail:
        print("    " + result.detail.replace("\n", "\n    "), flush=True)
    return result


def _summary(results: Sequence[Result], seconds: float) -> int:
    killed = sum(result.verdict is Verdict.KILLED for result in results)
    print(f"{len(results)} mutants, {killed} killed, in {seconds / 60:.1f} min")
    return 0 if killed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
