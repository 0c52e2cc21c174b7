"""What runs the model behind an Aligner. `base` is the seam; each other module is one engine, loaded when used."""
