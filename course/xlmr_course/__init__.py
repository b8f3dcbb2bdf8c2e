"""A course: build XLM-R step by step, and let each step be marked. `xlmr course` begins it.

The package xlmr_core knows nothing of it; it finds the command by its entry point.
"""
