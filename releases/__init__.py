"""May it go out, who sees it, how is it undone: policy, gate, manifest, publish, rollback.

`releases/app` is the composition root: the command line and the demo, the only place that imports `transforms`.
"""
