"""What an evaluation found: its values, their intervals, and what attacks are called."""
