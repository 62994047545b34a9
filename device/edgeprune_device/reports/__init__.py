"""Signed reports, and the spool that keeps them until they are delivered."""
