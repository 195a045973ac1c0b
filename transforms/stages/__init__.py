"""The stages that a pipeline may name, as one literal dictionary.

To add one: write a `transforms.stage.Stage` subclass in a module here, its kernel in `transforms/kernels/`, and one
line below.
"""

from collections.abc import Mapping
from importlib import import_module

from lake.errors import BadInput, nearest
from transforms.stage import Stage

# name -> "module:class". Modules are imported on use: `emlake --help` must not pay for OpenCV.
STAGES: dict[str, str] = {
    "stitch": "transforms.stages.imaging:Stitch",
    "match": "transforms.stages.alignment:Match",
    "align": "transforms.stages.alignment:Align",
    "em": "transforms.stages.alignment:DrawVolume",
    "affinity": "transforms.stages.inference:Affinity",
    "watershed": "transforms.stages.segmentation:Watershed",
    "edges": "transforms.stages.segmentation:Edges",
    "agglomerate": "transforms.stages.segmentation:Agglomerate",
    "segments": "transforms.stages.segmentation:Segments",
    "segmentation": "transforms.stages.segmentation:Segmentation",
    "mesh_pieces": "transforms.stages.meshes:MeshPieces",
    "meshes": "transforms.stages.meshes:Meshes",
    "synapse_sites": "transforms.stages.inference:SynapseSites",
    "synapses": "transforms.stages.synapses:FindSynapses",
    "connections": "transforms.stages.synapses:Connections",
}


def stage_class(name: str, stages: Mapping[str, str] | None = None) -> type[Stage]:
    """Give the class of stage `name`, or raise `BadInput` with the nearest name."""
    known = STAGES if stages is None else stages
    if name not in known:
        raise BadInput(f"there is no stage {name!r}", fix=nearest(name, known))
    module, _, attribute = known[name].partition(":")
    found: type[Stage] = getattr(import_module(module), attribute)
    return found
