"""A real Kubernetes on this machine, as root, in namespaces of its own: `python -m tests.cluster.rig up`."""
