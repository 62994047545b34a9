"""`edgeprune bench`: measures a bundle and makes a report with a verdict."""
