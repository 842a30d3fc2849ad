"""One small, functional JAX codebase that takes a big model through its whole life."""

__version__ = '0.1.0'
