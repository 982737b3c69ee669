"""Plain English text for the fill-mask adapter, out of packages that are unpacked in a folder and out of the decoder.

`python -m model.training.texts SOURCES OUTPUT.txt --simple SIMPLE.txt --written WRITTEN.txt` writes the lines that the
recipes train on. DATA.md says what SOURCES holds and whose it is.
"""
