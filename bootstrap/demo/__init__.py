"""The support desk: the whole loop on tiny models trained from nothing, in a world with an exact judge."""
