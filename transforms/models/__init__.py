"""Networks that predict affinities and synapses, their training, and the trained weights that come with the project.

`nets` (what is computed), `inference` (a trained model on a block of voxels), `samples` and `targets` (what is learned
from), `training` (how), `scores` (how well), `weights/` (trained models), `configs/` (the commands that made them).
Only this package uses torch; importing it costs over a second, so importers do it inside the function that needs it.
"""
