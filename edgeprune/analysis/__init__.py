"""The accuracy that pruning costs before any training: by budget, and group by group."""
