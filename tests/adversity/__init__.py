"""Cut links, hostile bytes, full disks: each ends in a clear error or a correct copy."""
