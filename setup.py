"""Everything is in setup.cfg. Never run this file by itself: use pip or build."""

from setuptools import setup

setup()
