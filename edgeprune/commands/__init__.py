"""One thin file per sub-command: it declares the options, calls one verb of edgeprune/api/ and prints the result."""

import os

# Set before Ultralytics is imported, because its messages would mix with the results. A value that the user has set
# stays.
os.environ.setdefault("YOLO_VERBOSE", "False")
