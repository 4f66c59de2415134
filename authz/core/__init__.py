"""The decision. Pure: standard library only, no I/O, no clock, no randomness."""
