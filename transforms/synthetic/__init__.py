"""Synthetic electron microscopy with known truth: neuropil (image, labels, synapses) and its acquisition as tiles."""
