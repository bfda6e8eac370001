from fakes import fake_plugins

__all__ = ["fake_plugins"]
