"""Requests that try to be read in two ways, as data, and what judges the answers."""
