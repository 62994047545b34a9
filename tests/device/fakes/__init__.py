"""Fakes of parts that only a drone has, made from the real public APIs. Each describes what it imitates."""
