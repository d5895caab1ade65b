"""What `doctor` says of a chain without asking anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainbell.cli.doctor import Verdict, tell_proof
from chainbell.configured import ConfiguredChain, configure_chains
from chainbell.settings import load_settings
from chains.profile import load_profile, profile_names


def configured(tmp_path: Path, slug: str, more: str = "") -> ConfiguredChain:
    file = tmp_path / "chainbell.toml"
    file.write_text(f'[chains.{slug}]\nnodes = [{{ url = "http://127.0.0.1:1" }}]\n{more}')
    (chain,) = configure_chains(load_settings(file))
    return chain


@pytest.mark.parametrize("name", profile_names())
def test_the_proof_of_a_chain_is_told_with_each_thing_that_it_does_not_cover(tmp_path: Path, name: str) -> None:
    proof, *unproven = tell_proof(configured(tmp_path, name))
    assert (proof.subject, proof.verdict, proof.detail) == (f"{name} proof", Verdict.OK, "roots")
    assert [finding.detail for finding in unproven] == list(load_profile(name).unproven)
    assert {finding.subject for finding in unproven} <= {f"{name} not proven"}


def test_a_weaker_proof_than_the_profiles_is_a_warning(tmp_path: Path) -> None:
    proof, *_ = tell_proof(configured(tmp_path, "polygon", 'proof = "bloom"'))
    assert proof.verdict is Verdict.WARNING
    assert proof.detail.startswith('bloom: below "roots", as the profile has it, a node can hide or alter a deposit')
