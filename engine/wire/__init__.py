"""Connections: dialling, the data plane's protocol, the control plane's client. Rank 2."""
