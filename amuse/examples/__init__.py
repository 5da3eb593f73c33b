"""Other tasks for the paper's technique, one runnable file each; see docs/tasks.md."""
