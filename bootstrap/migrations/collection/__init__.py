"""The revisions of a collection of corrections."""
