"""The whole path on a generated sample: tiles in, release out, a worse release found, traced and rolled back.

Everything the story tells is read back from the repository, so that a second run in the same folder, which computes
nothing, tells the same story.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lake
from lake.digests import canonical_json
from lake.errors import BadInput, GateRefused, RepositoryNotFound
from lake.repository import Repository
from lake.wording import counted
from qc.run import run_qc
from releases.app.screen import Screen
from releases.app.truth import import_truth
from releases.candidates import candidate
from releases.gate import judge
from releases.history import history
from releases.publish import publish, refused, rollback
from releases.setup import init
from releases.waivers import waive

if TYPE_CHECKING:
    from transforms.pipeline import Pipeline

SHAPE = (64, 512, 512)
VOXEL_NM = (16.0, 8.0, 8.0)
BLOCK = (64, 64, 64)
GOOD, FAST = "r1", "r2"
MODELS = {GOOD: "builtin:affinity-large", FAST: "builtin:affinity-small"}
USER = "demo"


@dataclass(frozen=True, slots=True)
class Demo:
    """Where the demo works: a folder of its own, and a repository that may lie elsewhere."""

    folder: Path
    location: str
    seed: int
    shape: tuple[int, int, int] = SHAPE

    @property
    def sample(self) -> Path:
        """The acquisition on disk."""
        return self.folder / "sample"


def run_demo(demo: Demo, screen: Screen, executor: str = "processes") -> dict[str, Any]:
    """Do whatever is not done yet, and give what `releases.app.story.read` reads back, plus what this call did."""
    from releases.app.story import read_story

    started = time.monotonic()
    repo = _open(demo)
    names = {release.name for release in history(repo)}
    undone = {release.name for release in history(repo) if release.undone_by}
    computed = 0
    if GOOD not in names:
        _ingest(repo, demo, screen)
        computed += _release_good(repo, demo, screen, executor)
    if FAST not in names:
        computed += _release_fast(repo, screen, executor)
    for name in names & {GOOD, FAST}:
        _look(repo, name, screen)
    if FAST not in undone:
        _roll_back(repo, screen)
    made = [name for name in (GOOD, FAST) if name not in names]
    with screen.step("reading the story back from the lake"):
        story = read_story(repo, demo)
    repo.close()
    return {**story, "this_run": {"blocks": computed, "releases": made, "seconds": time.monotonic() - started}}


def _open(demo: Demo) -> Repository:
    """Open the repository, or make it; a repository made with another seed is refused."""
    try:
        demo.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{error.filename} is no folder", fix="choose another place for the demo") from error
    mark = demo.folder / "demo.json"
    mine = {"seed": demo.seed, "shape": list(demo.shape), "repository": demo.location}
    if mark.exists():
        there = json.loads(mark.read_text())
        if there != mine:
            raise BadInput(
                f"{demo.folder} holds a demo with seed {there['seed']} in {there['repository']}, not {mine}",
                fix="choose another folder, or give the same seed and repository",
            )
    elif any(demo.folder.iterdir()):
        raise BadInput(f"{demo.folder} is not empty and holds no demo", fix="choose a new folder")
    try:
        repo = lake.open(demo.location)
    except RepositoryNotFound:
        repo = init(demo.location, block_zyx=BLOCK, voxel_nm_zyx=VOXEL_NM)
    mark.write_bytes(canonical_json(mine))
    return repo


def _ingest(repo: Repository, demo: Demo, screen: Screen) -> None:
    from transforms.ingest import ingest_tiles
    from transforms.synthetic.acquisition import acquire
    from transforms.synthetic.neuropil import neuropil

    name = f"demo-{demo.seed}"
    with screen.step("a synthetic acquisition, from the seed"):
        sample = neuropil(demo.seed, demo.shape)
        acquire(sample.image, demo.sample, demo.seed, name=name)
        np.save(demo.sample / "truth_labels.npy", sample.labels)
        columns: dict[str, Any] = sample.synapses.columns()
        np.savez(demo.sample / "truth_synapses.npz", allow_pickle=False, **columns)
        box = sample.odd_box
        (demo.sample / "truth.odd.json").write_bytes(
            canonical_json({"start": list(box.start), "stop": list(box.stop)} if box else None)
        )
    with screen.step("ingest: every tile validated, hashed, archived") as bar:
        report = ingest_tiles(repo, demo.sample, progress=lambda done, total: bar.blocks("tiles", done, total))
    screen.say(f"  {report.text}")


def _release_good(repo: Repository, demo: Demo, screen: Screen, executor: str) -> int:
    if f"cand-{GOOD}" not in repo.branches():
        candidate(repo, GOOD)
    if "ground_truth" not in repo.snapshot(f"cand-{GOOD}").folders("volumes/"):
        with screen.step("known truth, for QC"):
            labels = np.load(demo.sample / "truth_labels.npy", mmap_mode="r")
            known = np.load(demo.sample / "truth_synapses.npz")
            ends = {end: np.stack([known[f"{end}_{axis}"] for axis in "zyx"], axis=1) for end in ("pre", "post", "ctr")}
            pairs = np.stack([known["pre_id"], known["post_id"]], axis=1)
            import_truth(repo, f"cand-{GOOD}", labels, VOXEL_NM, points=ends, pairs=pairs)
    computed = _run(repo, GOOD, screen, executor)
    _measure(repo, GOOD, screen)
    with screen.step(f"publish {GOOD}"):
        publish(repo, GOOD, user=USER)
    return computed


def _pipeline(name: str) -> "Pipeline":
    from transforms.pipeline import load_pipeline

    return load_pipeline("reconstruct").with_models({"membranes": MODELS[name]})


def _look(repo: Repository, name: str, screen: Screen) -> None:
    """Say what the pipeline would compute on a published candidate. It stays as it went out, whatever the answer."""
    from transforms.planner import plan

    with screen.step(f"plan of {name}: is anything stale?"):
        todo = sum(len(stage.todo) for stage in plan(repo, f"cand-{name}", _pipeline(name)).stages)
    stale = f"{counted(todo, 'block')} would come out of newer code: make a new candidate for it"
    told = stale if todo else "nothing to compute"
    screen.say(f"  {told}")


def _run(repo: Repository, name: str, screen: Screen, executor: str) -> int:
    from transforms.runner import run

    pipeline = _pipeline(name)
    with screen.step(f"reconstruct {name} with {MODELS[name].removeprefix('builtin:')}") as bar:
        report = run(repo, pipeline, f"cand-{name}", executor=executor, progress=bar.blocks)
    done = counted(report.computed, "block")
    screen.say(f"  {done} computed, {report.cpu_s:.1f} CPU s, Merkle root {report.merkle_root[:12]}")
    return report.computed


def _measure(repo: Repository, name: str, screen: Screen) -> None:
    with screen.step(f"QC of {name}, region by region") as bar:
        run_qc(repo, f"cand-{name}", progress=bar.blocks)


def _release_fast(repo: Repository, screen: Screen, executor: str) -> int:
    if f"cand-{FAST}" not in repo.branches():
        candidate(repo, FAST)
    computed = _run(repo, FAST, screen, executor)
    _measure(repo, FAST, screen)
    with screen.step(f"the gate looks at {FAST}"):
        try:
            publish(repo, FAST, user=USER)
        except GateRefused as error:
            screen.say(f"  refused: {error.message}")
        else:
            raise AssertionError(f"the gate let {FAST} through: the demo proves nothing")
    gates = sorted({result.gate for result in judge(repo, FAST).refusals})
    with screen.step(f"publish {FAST} with a waiver on {', '.join(gates)}"):
        for gate in gates:
            waive(repo, FAST, gate, owner=USER, reason="faster model wanted for the whole volume, on trial", days=7)
        left = judge(repo, FAST)
        if left.refusals:
            raise GateRefused(refused(FAST, left), fix="these cannot be waived")
        publish(repo, FAST, user=USER)
    return computed


def _roll_back(repo: Repository, screen: Screen) -> None:
    from releases.app.story import damage

    with screen.step("which region is damaged? ask the lake"):
        found = damage(repo)
    screen.say(f"  regions {', '.join(found['regions']) or 'none'}")
    with screen.step(f"roll {FAST} back"):
        rollback(repo, FAST, user=USER, reason=f"VI worse in regions {', '.join(found['regions'])}")
