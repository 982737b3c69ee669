"""The `janus` command: a supervisor for the three services, and a small client of a running gateway."""
