"""The clients that are measured, and what drives each of them in a process of its own."""
