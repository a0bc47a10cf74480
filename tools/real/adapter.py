"""A package's own code around a model that is run elsewhere.

An adapter is a function of a session. It runs the package's pre- and post-processing over inputs that are made here, and gives
one decision a sample: what a user of the package sees. The session is first the original, whose inputs are recorded, and then
each candidate."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace

from catalog import MODELS, unpacked


class Session:
    """What the packages take for ONNX Runtime's session: `run(feed)` gives all outputs by name."""

    def __init__(self, run, keep=None):
        self.give, self.keep = run, keep

    def run(self, names, feed, *_):
        outputs = self.give(feed)
        if self.keep is not None:
            self.keep.append({name: value.copy() for name, value in feed.items()})
        return [outputs[name] for name in names] if names else list(outputs.values())


def bare(class_, **fields):
    """An object of a package's class without its constructor, which would load the model."""
    made = object.__new__(class_)
    made.__dict__.update(fields)
    return made


def load(package, module):
    """A module of an unpacked package, with its parents."""
    folder = str(unpacked(package))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def alone(package, file, name):
    """A file of an unpacked package as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, unpacked(package) / file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stub(name, **fields):
    """Stands for a module that a package imports for other purposes."""
    sys.modules.setdefault(name, SimpleNamespace(**fields))


def adapter(name):
    """The function that drives a model; None if there is none."""
    driver = MODELS[name][2]
    if driver is None:
        return None
    module, function = driver.split(":")
    return getattr(importlib.import_module(module), function)
