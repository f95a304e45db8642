"""Backends: each turns a module into an artifact for its kind of machine."""

if __name__ == "backends":
    raise ImportError("import slmopt.backends: the folder backends is the package slmopt.backends")
