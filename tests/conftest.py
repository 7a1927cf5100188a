"""For all tests."""

import signal

# a run in the background of a script inherits an ignored SIGINT, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)
