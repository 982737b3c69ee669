"""The encoder worker: all tasks that read a whole text at once, from vectors and labels to answers and attention.

servicer -> task (encode) -> batcher -> runner -> model -> head -> task (decode)
"""
