"""Files, threads and progress of long work, independent of what the work is about."""
