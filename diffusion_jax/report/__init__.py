"""What a person sees of a run: pictures, curves, metric files and progress; numpy arrays in, files and lines out."""
