"""One build on disk: its options, its stages, its record, resumed where it stopped."""
