"""Commands that an operator types; only `cli` imports them."""
