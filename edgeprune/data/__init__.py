"""Labelled images: data sets in every form that Ultralytics takes, and samples as the network takes them."""
