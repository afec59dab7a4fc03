"""Bytes -> records: text, CSV, JSON and Parquet files, as documents or as Arrow tables kept in a cache.

In: paths, folders, patterns or uploads. Out: one document per file (`whole_file`), or a memory-mapped table of rows
(`file_tables`), with a `LoadReport` of what was left out. Every message about a bad line names the file and the line.
Open `records.py` first: it maps a file's format to the reader of that format.
"""
