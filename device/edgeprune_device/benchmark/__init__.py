"""`edgeprune bench`: a bundle becomes a report with a verdict."""
