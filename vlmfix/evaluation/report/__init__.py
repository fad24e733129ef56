"""Reports: the HTML page, tables and summaries."""
