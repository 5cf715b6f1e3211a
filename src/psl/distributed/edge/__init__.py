"""The emulated edge: slower devices, and links with a rate, kept by the kernel or by the sender."""
