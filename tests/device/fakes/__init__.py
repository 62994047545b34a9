"""Fakes of what a drone has and this machine has not, made from the real public API. Each says what it pretends."""
