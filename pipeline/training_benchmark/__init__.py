"""How fast training is, beside PyTorch, beside data that costs nothing, and how soon it starts."""
