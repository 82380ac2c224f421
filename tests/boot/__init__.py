"""Real guests: a Debian with real systemd and real cloud-init, booted here, that first boot is
shown on.

Read from the bottom up: ``host`` (what this machine needs), ``roots`` (base roots, built once, and
layers above them),
``network`` (the plane's address and the guests' links), ``guest`` (one guest: boot it, ask it, stop
it, boot it again;
``facts``: what came of it), ``scan`` (find a secret in every form), ``seeds`` (what a datasource
hands to cloud-init),
``ec2`` (a metadata service that serves the token again at every boot). A plain script may use all
of it; only
``conftest`` and the tests know pytest.
"""
