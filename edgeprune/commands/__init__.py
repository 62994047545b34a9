"""One thin file a sub-command: its options, one verb of edgeprune/api/, and what it prints."""

import os

# Before Ultralytics is imported: its greetings would stand between our results. What the user set stays.
os.environ.setdefault("YOLO_VERBOSE", "False")
