"""Drift: whether the traffic is still what the guard was calibrated on, with a promise about false alarms."""
