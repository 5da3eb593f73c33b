"""Other tasks that the paper's technique suits, one runnable file each; docs/tasks.md."""
