"""What crosses between processes: messages, the encrypted streams that carry them, and the keys of a run."""
