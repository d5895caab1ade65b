"""A Merkle-Patricia trie written from its definition (Yellow Paper, appendix D), and the proofs that it gives."""

from __future__ import annotations

import rlp

from chains.evm.keccak import keccak

Pairs = dict[str, bytes]
"""Values by key; keys as nibbles in hex."""


class SlowTrie:
    """All of a trie's nodes by hash, and by embedding."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self.values = values
        self.by_hash: dict[bytes, bytes] = {}
        root = rlp.encode(self._node({key.hex(): value for key, value in values.items()}) if values else b"")
        self.root = keccak(root)
        self.by_hash[self.root] = root

    def proof(self, key: bytes) -> list[bytes]:
        """The nodes on the way to `key`, as far as the trie has it, without those that are embedded in others."""
        nodes: list[bytes] = []
        reference: object = self.root
        nibbles = key.hex()
        while isinstance(reference, list) or (isinstance(reference, bytes) and len(reference) == 32):
            if isinstance(reference, bytes):
                nodes.append(self.by_hash[reference])
                node = rlp.decode(nodes[-1])
            else:
                node = reference
            if len(node) == 17:
                reference, nibbles = (node[int(nibbles[0], 16)], nibbles[1:]) if nibbles else (None, "")
            elif len(node) == 2:
                digits = node[0].hex()
                path = digits[1:] if digits[0] in "13" else digits[2:]
                reference = node[1] if digits[0] in "01" and nibbles.startswith(path) else None
                nibbles = nibbles[len(path) :]
            else:
                reference = None
        return nodes

    def _node(self, pairs: Pairs) -> list[object]:
        if len(pairs) == 1:
            ((key, value),) = pairs.items()
            return [hex_prefix(key, 2), value]
        head = ""
        while all(len(key) > len(head) for key in pairs) and len({key[: len(head) + 1] for key in pairs}) == 1:
            head = next(iter(pairs))[: len(head) + 1]
        if head:
            return [hex_prefix(head, 0), self._reference({key[len(head) :]: value for key, value in pairs.items()})]
        groups = [{key[1:]: value for key, value in pairs.items() if key[:1] == digit} for digit in "0123456789abcdef"]
        return [*(self._reference(group) if group else b"" for group in groups), pairs.get("", b"")]

    def _reference(self, pairs: Pairs) -> object:
        node = self._node(pairs)
        encoded = rlp.encode(node)
        if len(encoded) < 32:
            return node
        self.by_hash[keccak(encoded)] = encoded
        return keccak(encoded)


def hex_prefix(nibbles: str, flag: int) -> bytes:
    """Yellow Paper, appendix C: `flag` is 2 for a leaf, 0 for an extension."""
    odd = len(nibbles) % 2
    return bytes.fromhex(f"{flag + odd:x}" + ("" if odd else "0") + nibbles)
