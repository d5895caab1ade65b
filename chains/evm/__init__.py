"""The EVM family: what its nodes say, how it is proven, and which value it moves."""
