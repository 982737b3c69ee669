"""REST: OpenAI's routes unchanged, task routes with Hugging Face's bodies, probes, one shape of error.

Source: the OpenAI API reference, RFC 9457 (problem details), the WHATWG text on server-sent events.
"""
