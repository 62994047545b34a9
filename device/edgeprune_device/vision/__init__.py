"""Images to network input, network output to boxes, boxes to accuracy."""
