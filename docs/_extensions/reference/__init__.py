"""Markdown of the references, from the same tables and comments that the commands print."""
