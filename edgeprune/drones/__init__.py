"""Drones over SSH: setup, deployment, collection of reports; also disk images and containers."""
