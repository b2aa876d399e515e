# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the package bitsandbytes, for as long as the real one is absent or fails to import.

peft, transformers and accelerate ask find_spec and importlib.metadata for bitsandbytes and import it, on the way of scripts
that run nothing of it. install() puts a finder first on sys.meta_path:

    bitsandbytes is       `import bitsandbytes` gives
    installed             the real one, as if nothing were here
    broken                the stand-in, instead of the exception
    absent                the stand-in, which importlib.metadata knows, too

The stand-in has the names that are looked up at import. What would compute raises and says what to use instead.
"""

import importlib.metadata
import importlib.util
import sys
from types import ModuleType

NAME = "bitsandbytes"
# New enough for all that asks: int8 models are saved, moved, trained and merged by int8q.
VERSION = "0.50.0+int8q"
_CACHED_ANSWERS = {  # of the question whether bitsandbytes is there
    "transformers.utils.import_utils": ("_is_package_available", "is_bitsandbytes_available"),
    "peft.import_utils": ("is_bnb_available", "is_bnb_4bit_available"),
}


class _Distribution(importlib.metadata.Distribution):
    def read_text(self, filename):
        return f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n" if filename == "METADATA" else None

    def locate_file(self, path):
        return path


class _Guard:
    """The real package's loader; where its module raises, it becomes the stand-in."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module):
        kept = set(vars(module))
        try:
            self._loader.exec_module(module)
        except Exception as error:
            for name in set(vars(module)) - kept:
                delattr(module, name)
            for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
                del sys.modules[name]
            _fill(module, f"fails to import: {type(error).__name__}: {error}")
        else:
            module.__loader__ = module.__spec__.loader = self._loader


class _Finder:
    """Finds bitsandbytes and nothing else; loads the stand-in."""

    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None or spec.loader is None:  # None: a folder of that name
            return importlib.util.spec_from_loader(name, self, is_package=True)
        spec.loader = _Guard(spec.loader)
        return spec

    def find_distributions(self, context=None):
        if getattr(context, "name", None) != NAME:
            return
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_distributions")]
        if not any(list(finder.find_distributions(context)) for finder in finders):
            yield _Distribution()

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        _fill(module, "is not installed")


def _fill(module, why):
    """Makes a module the stand-in."""
    import torch

    module.__doc__ = f"int8q's stand-in for {NAME}, which {why}"
    module.__version__ = importlib.metadata.version(NAME)
    module.__path__ = module.__spec__.submodule_search_locations = []
    module.int8q_stands_in = True
    module.features = {"multi_backend"}  # accelerate: training on a CPU is no mistake

    def refusing(name, base, instead):
        """A class that is there to be looked up, inherited from and asked for by isinstance."""

        def refuse(self, *args, **kwargs):
            raise RuntimeError(f"{name} is not there: {NAME} {why}, and int8q only stands in for it; use {instead}")

        return type(name.rpartition(".")[2], (base,), {"__init__": refuse, "__module__": name.rpartition(".")[0]})

    def part(name):
        made = ModuleType(f"{NAME}.{name}", module.__doc__)
        made.__spec__ = importlib.util.spec_from_loader(made.__name__, None)
        setattr(module, name, made)
        sys.modules[made.__name__] = made
        return made

    nn, optim = part("nn"), part("optim")
    nn.Linear8bitLt = refusing(f"{NAME}.nn.Linear8bitLt", torch.nn.Linear, "int8q.nn.Linear8bit")
    nn.Int8Params = refusing(f"{NAME}.nn.Int8Params", torch.nn.Parameter, "int8q.nn.Linear8bit")

    def optimizer(name):
        if name.startswith("_"):
            raise AttributeError(f"module '{NAME}.optim' has no attribute {name!r}")
        made = refusing(f"{NAME}.optim.{name}", torch.optim.Optimizer, "an optimizer of torch.optim, such as AdamW")
        setattr(optim, name, made)
        return made

    optim.__getattr__ = optimizer


def _forget_answers():
    for module, names in _CACHED_ANSWERS.items():
        for name in names:
            cached = getattr(sys.modules.get(module), name, None)
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()


_finder = _Finder()


def install():
    """From now on bitsandbytes can be imported."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        _forget_answers()


def uninstall():
    """Takes the stand-in away; who has imported it keeps it."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    if hasattr(sys.modules.get(NAME), "int8q_stands_in"):
        for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
            del sys.modules[name]
    _forget_answers()
