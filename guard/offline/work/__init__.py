"""Files, threads and progress of long work; nothing here knows what the work is about."""
