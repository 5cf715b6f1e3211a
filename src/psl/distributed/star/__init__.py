"""A server and its clients in processes of their own."""
