"""The decoder worker: streams text over a paged KV cache.

servicer -> engine (schedule -> execute -> commit) -> runner -> model
"""
