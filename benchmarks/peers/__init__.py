"""Other programs that run language models on this processor, to be measured beside slmopt's: see `install.py`."""
