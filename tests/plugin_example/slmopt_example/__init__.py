"""An example of a plugin for slmopt."""
