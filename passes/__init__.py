"""The passes that come with slmopt: one pass, one file."""

if __name__ != "slmopt.passes":
    raise ImportError(f"import the passes as slmopt.passes, not as {__name__}: run from outside the repository's root")
