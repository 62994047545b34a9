"""Models side by side, measured in one run, and the page that shows them."""
