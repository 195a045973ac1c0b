"""The stages that a pipeline may name, as one literal dictionary.

To add one: write a `transforms.stage.Stage` subclass in a module here, its kernel in `transforms/kernels/`, and one
line below.
"""

from importlib import import_module

from lake.errors import BadInput, nearest
from transforms.stage import Stage

# name -> "module:class". Modules are imported on use: some stages bring torch (1.3 s) with them.
STAGES: dict[str, str] = {}


def stage_class(name: str) -> type[Stage]:
    """Give the class of stage `name`, or raise `BadInput` with the nearest name."""
    if name not in STAGES:
        raise BadInput(f"there is no stage {name!r}", fix=nearest(name, STAGES))
    module, _, attribute = STAGES[name].partition(":")
    found: type[Stage] = getattr(import_module(module), attribute)
    return found
