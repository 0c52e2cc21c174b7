"""What a decoder saves: decoders compared on the same model, the same weights and prescribed outputs.

`workloads` and `replays` say what is to be written, `forcing` makes a model write it, `decoders` are the ways to get it
out of the model, `measure` times them in turns, `report` says what came of it, and `run` puts them together.
"""
