"""The plugin of napari, which its manifest, ``napari.yaml``, describes.

::

    dock.py         the widget: the form, its buttons, and what they start
    preview.py      the tiles that are asked for, drawn and counted
    form.py         the controls, in boxes
    controls.py     what the boxes are made of
    choices.py      operations and methods, with their parameters
    jobs.py         what is asked for, and the calls of blockbuster that do it
    workers.py      where these run
    background.py   one call in a thread, which tells the window how far it is
    layers.py       images from layers, layers from results
    grid_layer.py   the tiles, drawn over the image
    reader.py       zarr stores as layers
    sample.py       a real image to try

Everything up to `workers.py` needs neither Qt nor napari.
"""
