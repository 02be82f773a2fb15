"""Python files of the model repository, read without Triton."""

import importlib.util
from types import ModuleType

from lab_utils.server import MODEL_REPOSITORY


def load_model_file(model: str, name: str) -> ModuleType:
    """Load a file of a model as a module, without Triton: models import nothing of the lab, but the lab may read them.

    Parameters
    ----------
    model, name : str
        Folder in the model repository, and the file in it without ".py".
    """
    spec = importlib.util.spec_from_file_location(f"{model}_{name}", MODEL_REPOSITORY / model / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
