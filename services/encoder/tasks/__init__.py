"""The tasks: each is encode (texts to items), a head that the runner applies, decode (outputs to answers)."""
