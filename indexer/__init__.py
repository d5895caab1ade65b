"""Following chains: reconciling, matching policy, finality. The chain's story becomes the ledger's."""
