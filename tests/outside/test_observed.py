"""A chain whose proofs are only observed, as operators and merchants see it, and the same chain once they are enforced."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.node import Json
from tests.outside.installation import Installation, Tenant, installed
from tests.outside.test_recorded import AT, HEIGHT, chain_settings, holds_unproven, metric, recorded_node, watch_all

SLUG = "newnet"


def forge_timestamp(block: Json) -> Json:
    """Every header is altered: nothing of this chain hashes to what it says."""
    return block and {**block, "timestamp": "0x644a5b3b"}


async def proof_of(installation: Installation) -> str:
    """What `doctor` says of the chain's proof, whether or not it finds everything well."""
    ended = await installation.attempt("--json", "doctor")
    return "\n".join(line for line in ended.output.splitlines() if "only observed" in line)


async def check_coverage_of(installation: Installation, shop: Tenant, address: str) -> None:
    """The operator and the tenant are told the same of an address; of one that nobody watches there is nothing to tell."""
    told = await installation.command("coverage", "--chain", SLUG, "--address", address)
    assert told == await shop.call("GET", f"/v1/coverage?chain={SLUG}&address={address}")
    [watch] = told["watches"]
    assert (watch["tenant"], watch["gaps"], len(watch["ranges"])) == (shop.id, [], 1)
    shown = (await installation.attempt("coverage", "--chain", SLUG, "--address", address)).output
    assert f"{watch['id']}: no gaps from {HEIGHT} to {HEIGHT}" in shown
    nobody = await installation.attempt("coverage", "--chain", SLUG, "--address", "0x" + "12" * 20)
    assert nobody.status == 2
    assert "nobody watches it" in nobody.sentence


async def test_an_observed_chain_says_so_everywhere_and_holds_once_proofs_are_enforced(
    database_url: str, tmp_path: Path
) -> None:
    async with recorded_node(AT, 7) as node:
        node.misbehave(forge_timestamp, method="eth_getBlockByNumber")
        settings = chain_settings(SLUG, 7, AT, [("liar", node.url)])
        observed = settings.replace("nodes =", "proof_enforced = false\nnodes =", 1)
        async with installed(tmp_path, database_url, observed) as installation:
            await installation.start("serve")
            await installation.ready()
            shop = await installation.tenant("shop")
            await watch_all(shop, [(SLUG, AT)])
            await installation.start("follow")
            await shop.until_followed(SLUG, HEIGHT)
            row = await shop.until_chain(
                "its node is shown", SLUG, lambda row: any(one["reason"] for one in row["nodes"])
            )
            assert (row["proof"], row["proof_enforced"], row["state"]) == ("roots", False, "following")
            assert [one["reason"].partition(": the")[0] for one in row["nodes"]] == ["not enforced: header_hash"]
            deposits = await shop.rows("/v1/deposits", chain=SLUG)
            proofs = {(entry["proof"]["level"], entry["proof"]["enforced"]) for entry in deposits}
            assert proofs <= {("bloom", False), ("trace", False)}
            assert ("bloom", False) in proofs
            events = [event["data"]["proof"] for event in await shop.feed() if event["type"] == "deposit.detected"]
            assert {(proof["level"], proof["enforced"]) for proof in events} == proofs
            status = await installation.command("status")
            assert [chain["proof_enforced"] for chain in status["chains"]] == [False]
            assert "proofs are only observed" in (await installation.attempt("status")).output
            covered = await installation.command("coverage", "--chain", SLUG)
            told = [(one["from_height"], one["to_height"], one["proof"]) for one in covered["ranges"]]
            assert (told, covered["gaps"]) == ([(HEIGHT, HEIGHT, "bloom")], [])
            assert (
                f"no gaps from {HEIGHT} to {HEIGHT}" in (await installation.attempt("coverage", "--chain", SLUG)).output
            )
            await check_coverage_of(installation, shop, deposits[0]["to"])
            wrong = await installation.attempt("coverage", "--chain", SLUG, "--from", "9", "--to", "8")
            assert (wrong.status, wrong.sentence) == (2, "chainbell: --from 9 is above --to 8; swap them")
            above = await installation.attempt("replay", "--chain", SLUG, "--from", "1", "--to", str(HEIGHT + 1))
            assert above.status == 2
            assert f"--to {HEIGHT + 1}: it is above our tip {HEIGHT}" in above.sentence
            below = await installation.attempt("replay", "--chain", SLUG, "--from", "1", "--to", str(HEIGHT))
            assert (below.status, f"--from 1: it is below {HEIGHT}" in below.sentence) == (2, True)
            assert f"{SLUG} proof" in await proof_of(installation)
            assert '"event":"proof is only observed"' in installation.log_text()
            assert '"event":"proof failed, not enforced"' in installation.log_text()
            assert await metric(installation, "chainbell_chain_proof_enforced", chain=SLUG) == 0

            await installation.stop("follow")
            await installation.stop("serve")
            installation.configure(settings)
            await installation.run()
            row = await shop.until_chain("it holds", SLUG, holds_unproven)
            assert row["proof_enforced"] is True
            assert "no node's answer can be proven (header_hash)" in row["reason"]
            assert await metric(installation, "chainbell_chain_proof_enforced", chain=SLUG) == 1
            assert await metric(installation, "chainbell_proof_failures_total", chain=SLUG, check="header_hash") >= 1
            assert await proof_of(installation) == ""
