"""Settings of all tests."""

from hypothesis import settings

# The first call into torch takes longer than hypothesis allows an example.
settings.register_profile("speechssl", deadline=None)
settings.load_profile("speechssl")

pytest_plugins = ["planted"]
