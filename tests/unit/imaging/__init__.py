"""Tests of `engine.imaging`."""
