"""Reading and writing of files that survive crashes."""
