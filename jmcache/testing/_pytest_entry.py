"""What pytest loads at every start, under the name ``jmcache``: only the name of the plugin.

Loaded by its own name the plugin is there once, whoever else asks for it: ``-p``, a conftest's
``pytest_plugins``, or this. pytest refuses to start when one plugin comes under two names.
"""

pytest_plugins = ["jmcache.testing.pytest_plugin"]
