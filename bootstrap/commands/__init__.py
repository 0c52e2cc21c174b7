"""The commands of `aligner-bootstrap`, a file for each subject; `add` of each puts them into the parser."""
