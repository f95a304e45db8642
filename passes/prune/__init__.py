"""Structured pruning: channels, heads and layers that contribute least are cut out of the graph."""
