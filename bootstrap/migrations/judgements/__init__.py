"""The revisions of a file of judgements."""
