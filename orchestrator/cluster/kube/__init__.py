"""The Kubernetes API server's one door: `client` talks, `reflector` keeps what it says, the rest paces both.

Nothing else in orch imports `kubernetes`, save for the offline schema of `render`.
"""
