"""Labelled images: data sets (data.yaml, COCO's JSON, archives), and samples in the network's input format."""
