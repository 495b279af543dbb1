"""What a person sees of a run: pictures, curves, metric files and progress, from numpy arrays."""
