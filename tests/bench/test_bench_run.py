"""Memory of a run: a volume four times as large may cost at most a third more."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, resource, sys
from pathlib import Path
import numpy as np
from scipy import ndimage
import lake
from lake.digests import canonical_json
from lake.volume_spec import VolumeSpec
from lake.volumes import create_volume
from transforms.pipeline import load_pipeline
from transforms.runner import run
from transforms.tree import GRID

def model(folder):
    import torch
    from safetensors.torch import save
    from transforms.models.inference import CARD, WEIGHTS, describe
    from transforms.models.nets import Architecture, UNet
    torch.manual_seed(0)
    architecture = Architecture(3, widths=(4,), encoder=(2,), decoder=(), pool_z=())
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(save({k: v.contiguous() for k, v in UNet(architecture).state_dict().items()}))
    (folder / CARD).write_text(json.dumps(describe("affinity", architecture)))

def main(folder, edge):
    repo = lake.create(folder / "repo")
    grid = {"block_zyx": [64, 64, 64], "region_blocks_zyx": [1, 1, 1], "voxel_nm_zyx": [16, 8, 8]}
    repo.put("main", GRID, canonical_json(grid))
    repo.commit("main", "grid")
    repo.create_branch("work", "main")
    spec = VolumeSpec("em", "image", "uint8", (64, edge, edge), (16.0, 8.0, 8.0), chunk_zyx=(64, 64, 64))
    with repo.session("work") as session:
        volume = create_volume(session.workspace("volumes/em/"), spec)
        for _, box in volume.box.blocks((64, 64, 64)):
            noise = ndimage.gaussian_filter(np.random.default_rng(box.start).normal(size=box.shape), (3, 6, 6))
            volume.write(box, np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8))
        session.commit("em")
    model(folder / "m")
    text = (Path(load_pipeline.__code__.co_filename).parent / "pipelines/volume.toml").read_text()
    (folder / "p.toml").write_text(text.replace("builtin:affinity-large", "m"))
    params = {"affinity": {"cells": [1, 2, 2]}, "watershed": {"min_voxels": 400}}
    report = run(repo, load_pipeline(folder / "p.toml").with_params(params), "work", executor="processes", workers=2)
    peaks = {who: resource.getrusage(getattr(resource, who)).ru_maxrss for who in ("RUSAGE_SELF", "RUSAGE_CHILDREN")}
    with repo.snapshot("work") as snapshot:
        rows = snapshot.table("edges").collect().height
    told = {"self": peaks["RUSAGE_SELF"], "worker": peaks["RUSAGE_CHILDREN"], "edges": rows, "seconds": report.seconds}
    print(json.dumps(told))

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.bench
def test_a_volume_four_times_as_large_costs_at_most_a_third_more_memory(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(CODE)
    found = {}
    for edge in (256, 512):
        (tmp_path / str(edge)).mkdir()
        command = [sys.executable, str(script), str(tmp_path / str(edge)), str(edge)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[edge] = json.loads(done.stdout.splitlines()[-1])
    small, large = (found[edge]["self"] + 2 * found[edge]["worker"] for edge in (256, 512))
    print(f"\npeak of parent and two workers, KiB: {small} -> {large} ({large / small:.2f}x); {found}")
    assert large <= small * 4 / 3
    assert found[512]["self"] <= found[256]["self"] * 4 / 3
    assert found[512]["worker"] <= found[256]["worker"] * 4 / 3
