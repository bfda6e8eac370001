from fakes import fake_plugins, protocol

__all__ = ["fake_plugins", "protocol"]
