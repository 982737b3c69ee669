"""The encoder worker: labels and vectors of whole texts.

servicer -> task (encode) -> batcher -> runner -> model -> head -> task (decode)
"""
