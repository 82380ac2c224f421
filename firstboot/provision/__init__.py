"""Root, once a boot: the only code that sees a token before it is spent."""
