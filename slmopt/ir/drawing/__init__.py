"""Pictures of graphs: one SVG file to look at, one HTML page to walk about in; neither needs anything else."""

from slmopt.ir.drawing.html import draw_html
from slmopt.ir.drawing.svg import draw_svg

__all__ = ["draw_html", "draw_svg"]
