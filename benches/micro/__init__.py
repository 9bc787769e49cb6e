"""What each part of the native core costs, by itself."""
