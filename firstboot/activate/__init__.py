"""Root, short-lived, without network: verifies, unpacks, switches, gates; trusts no agent."""
