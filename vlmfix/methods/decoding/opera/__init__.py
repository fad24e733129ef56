"""OPERA: over-trust penalty and rollback search."""
