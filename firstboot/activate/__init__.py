"""Root, short-lived, without network: verifies, unpacks, switches and gates; trusts nothing that the agent wrote."""
