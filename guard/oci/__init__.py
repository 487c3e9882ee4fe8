"""Bundles as OCI images: packed, unpacked, pushed to a registry and pulled from one."""
