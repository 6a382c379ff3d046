"""The two processes, put together: `qubesd`, which owns the state, and the unprivileged broker."""
