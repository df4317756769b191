"""blockbuster: any function over an image larger than memory, tile by tile, with one consistent result."""

from blockbuster.blobs import detect_blobs
from blockbuster.budget import auto_tile_shape
from blockbuster.chunking import get_split_stack_total_shape, merge_split_stack, split_stack, stack_splitter
from blockbuster.cluster import make_local_cluster, make_slurm_cluster
from blockbuster.duplicates import merge_blobs, prune_blobs
from blockbuster.emptiness import EmptyTiles, estimate_empty_tiles
from blockbuster.errors import (
    BlockbusterError,
    CapacityError,
    GeometryError,
    ImageError,
    LabelOverflowError,
    OutputError,
    OutputExistsError,
    ParameterError,
    ResumeError,
    SchedulerError,
    StageError,
    TileError,
)
from blockbuster.images import OpenedImage, load_ome_zarr, open_image
from blockbuster.labels import label
from blockbuster.mapping import map_tiles
from blockbuster.percentiles import global_percentiles
from blockbuster.planning import RunPlan, plan
from blockbuster.plugins.cellpose import auto_tile_shape_cellpose
from blockbuster.progress import RunProgress
from blockbuster.pyramid import downsample
from blockbuster.reporting import report
from blockbuster.rules import Contact, Overlapping, Touching, Where
from blockbuster.seams import SeamIndex, seam_index
from blockbuster.sequential import relabel_sequential_array, relabel_sequential_zarr
from blockbuster.tables import map_tiles_to_table
from blockbuster.tiles import merge_tile_labels, tile_process
from blockbuster.transfer import copy
from blockbuster.writing import pyramid, write_image, write_labels

__version__ = "0.1.0"

__all__ = [
    "BlockbusterError",
    "CapacityError",
    "Contact",
    "EmptyTiles",
    "GeometryError",
    "ImageError",
    "LabelOverflowError",
    "OpenedImage",
    "OutputError",
    "OutputExistsError",
    "Overlapping",
    "ParameterError",
    "ResumeError",
    "RunPlan",
    "RunProgress",
    "SchedulerError",
    "SeamIndex",
    "StageError",
    "TileError",
    "Touching",
    "Where",
    "auto_tile_shape",
    "auto_tile_shape_cellpose",
    "copy",
    "detect_blobs",
    "downsample",
    "estimate_empty_tiles",
    "get_split_stack_total_shape",
    "global_percentiles",
    "label",
    "load_ome_zarr",
    "make_local_cluster",
    "make_slurm_cluster",
    "map_tiles",
    "map_tiles_to_table",
    "merge_blobs",
    "merge_split_stack",
    "merge_tile_labels",
    "open_image",
    "plan",
    "prune_blobs",
    "pyramid",
    "relabel_sequential_array",
    "relabel_sequential_zarr",
    "report",
    "seam_index",
    "split_stack",
    "stack_splitter",
    "tile_process",
    "write_image",
    "write_labels",
]
