"""The tasks, a file each: encode (a request to items), a head that the runner applies, decode (outputs to answers)."""
