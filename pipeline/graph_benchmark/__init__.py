"""How fast the exported graph is, beside other runtimes; `compare` runs it."""
