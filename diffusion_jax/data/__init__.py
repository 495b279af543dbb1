"""Images in: sources of encoded examples, per-example transforms, the resumable pipeline of batches."""
