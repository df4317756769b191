"""Segmenters as picklable functions of a tile, for `blockbuster.tile_process`.

What they wrap is imported when they are called first, and a model is loaded once in each process.
"""
