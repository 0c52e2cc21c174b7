"""The revisions of a registry of models."""
