"""Plugins: what slmopt offers by name. Hook specifications, discovery, and the built-ins."""

if __name__ != "slmopt.plugins":
    raise ImportError(f"import slmopt.plugins, not {__name__}: the folder plugins is the package slmopt.plugins")
