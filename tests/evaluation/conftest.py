from fakes import fake_adapter, fake_plugins, protocol

__all__ = ["fake_adapter", "fake_plugins", "protocol"]
