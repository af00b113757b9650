"""How fast the embedded server is, beside the same SavedModel in process; `compare` runs it."""
