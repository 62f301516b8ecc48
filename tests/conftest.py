"""Settings of all tests."""

import signal

from hypothesis import settings

# The first call into torch takes longer than hypothesis allows an example.
settings.register_profile("speechssl", deadline=None)
settings.load_profile("speechssl")

# What a script starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["planted"]
