"""A build on disk: its options, stages and record, and how an interrupted build continues."""
