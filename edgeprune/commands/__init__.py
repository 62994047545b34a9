"""One thin file a sub-command: its options, one verb of edgeprune/api/, and what it prints."""

import os

# Set before Ultralytics is imported, because its messages would mix with the results. A value that the user has set
# stays.
os.environ.setdefault("YOLO_VERBOSE", "False")
