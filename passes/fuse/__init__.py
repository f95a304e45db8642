"""Passes that merge ops which the backends compute in one kernel; all exact."""
