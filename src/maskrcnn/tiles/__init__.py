"""Pictures of any size: windows of files, tiles, and objects put together from what tiles saw of them."""
