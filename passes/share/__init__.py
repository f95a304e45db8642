"""Passes that let several ops read one stored weight."""
