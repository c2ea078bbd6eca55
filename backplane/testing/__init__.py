"""Fakes and contract suites, for tests only; no program may import them."""
