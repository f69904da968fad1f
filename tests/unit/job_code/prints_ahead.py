"""A module that prints while it is imported, which is before the jobs."""

import ctypes

print("ahead")
ctypes.CDLL(None).printf(b"ahead, from C\n")
