"""What crosses between processes: checked messages, channels, and the engine that carries them."""
