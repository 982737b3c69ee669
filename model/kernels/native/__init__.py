"""A decoder's step on a CPU, in C++: packed weights, one call a step, the best instruction set that the machine has.

One source is compiled once for each instruction set (`build.py`), the best is chosen when the library is loaded
(`library.py`). It has no dependency, knows no family and no request, and is called through ctypes without the GIL. For
one variant a row's result is the same, to the bit, alone, in any batch, in any chunks and with any number of threads.
"""
