"""What a person sees of a command: progress, warnings and results as text."""
