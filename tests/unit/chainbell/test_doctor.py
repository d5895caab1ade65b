"""What `doctor` says of a chain without asking anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainbell.cli.doctor import Verdict, judge_clock, judge_traces, tell_proof
from chainbell.configured import ConfiguredChain, configure_chains
from chainbell.settings import load_settings
from chains.evm.probe import NodeProbe
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


def test_a_proof_that_is_only_observed_is_a_warning(tmp_path: Path) -> None:
    proof, *_ = tell_proof(configured(tmp_path, "ethereum", "proof_enforced = false"))
    assert proof.verdict is Verdict.WARNING
    assert proof.detail.startswith("roots, only observed: a block that fails is told of and taken all the same")
    weaker = tell_proof(configured(tmp_path, "ethereum", 'proof = "bloom"\nproof_enforced = false'))
    assert [finding.verdict for finding in weaker[:3]] == [Verdict.WARNING, Verdict.WARNING, Verdict.OK]


@pytest.mark.parametrize(("skew_s", "verdict"), [(0.2, Verdict.OK), (7, Verdict.WARNING), (31, Verdict.FAILED)])
def test_a_clock_by_which_nothing_would_be_signed_fails(skew_s: float, verdict: Verdict) -> None:
    assert judge_clock(skew_s).verdict is verdict


TWO_HOSTS = 'nodes = [{ url = "http://127.0.0.1:1" }, { url = "http://127.0.0.2:1" }]\n'
TRACING = NodeProbe("one", "127.0.0.1", trace_methods=("trace_block",))
TRACING_TOO = NodeProbe("two", "127.0.0.2", trace_methods=("debug_traceBlockByHash", "trace_block"))
PROVING = NodeProbe("three", "127.0.0.3", has_state_proofs=True)
SILENT = NodeProbe("four", "127.0.0.4", has_state_proofs=False)


@pytest.mark.parametrize(
    ("more", "probes", "verdict", "words"),
    [
        ('internal = "off"', [TRACING], Verdict.OK, "not read: internal is off"),
        ("", [SILENT], Verdict.WARNING, "not read: no node traces"),
        ('internal = "required"', [SILENT], Verdict.FAILED, "required, and no node traces: the chain will hold"),
        (
            "",
            [TRACING, SILENT],
            Verdict.WARNING,
            "one (trace_block): one host's word (`trace`), and no node has account",
        ),
        ("", [TRACING, PROVING], Verdict.WARNING, "one host's word (`trace`), raised to `state` where account proofs"),
        ("quorum = 1", [TRACING, TRACING_TOO], Verdict.WARNING, "one host's word"),
        ("", [TRACING, TRACING_TOO], Verdict.OK, "two (debug_traceBlockByHash): two hosts are compared (`agreed`)"),
    ],
)
def test_doctor_says_who_traces_and_how_far_that_proves(
    tmp_path: Path, more: str, probes: list[NodeProbe], verdict: Verdict, words: str
) -> None:
    file = tmp_path / "chainbell.toml"
    file.write_text(f"[chains.ethereum]\n{TWO_HOSTS}{more}\n")
    (chain,) = configure_chains(load_settings(file))
    found, text = judge_traces(chain, probes)
    assert found is verdict
    assert words in text
