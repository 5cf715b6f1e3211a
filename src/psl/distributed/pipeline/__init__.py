"""A pipeline whose stages, and the relays between them, are processes of their own."""
