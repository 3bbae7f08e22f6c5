"""Measure latency, throughput, memory and size of networks side by side, and say what was shown.

The candidates of a comparison take turns, A B C A B C, in one process, so that what else the machine does meets all of
them alike; a ratio is formed within each round, and then the median over the rounds is taken. No candidate is timed
before its result was compared with float64's.
"""

from .report import compare, draw, quartiles, ratio_text, table
from .run import bench

__all__ = ["bench", "compare", "draw", "quartiles", "ratio_text", "table"]
