"""Cassata: a small, persistent, multi-tenant event scheduler as a service."""

__version__ = "0.1.0"
