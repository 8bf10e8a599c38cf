"""Settings of the tests of the data."""

from hypothesis import settings

settings.register_profile("onelayer", deadline=None)  # other work may share the machine
settings.load_profile("onelayer")
