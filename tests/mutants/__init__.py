"""Every defence against losing, doubling or inventing money, taken out in turn to see its test fail (`make mutants`).

A test that has never been seen to fail proves little. So each defence that `docs/completeness.md` names is declared in
`declared.toml` as a *mutant*: the text of it in the code, the text that takes it out, and the tests that must fail then.

- `declared.py` reads the declarations, and is what `tests/test_mutants.py` compares with the code and the document.
- `trial.py` works on copies of the tree: one mutant at a time, its own tests only.
- `__main__.py` runs all of them, as many at a time as there are cores, and reports.
"""
