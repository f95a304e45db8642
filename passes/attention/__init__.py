"""Passes that replace softmax attention by attention whose memory does not grow with the sequence; all lossy."""
