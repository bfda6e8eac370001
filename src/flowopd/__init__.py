"""Turn several specialised text-to-image models into one that has all their skills."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("flowopd")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
