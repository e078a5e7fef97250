"""Artifacts on disk: the store, manifests, provenance, locks."""
