"""How much a network can lose before any training: by budget, and group by group."""
