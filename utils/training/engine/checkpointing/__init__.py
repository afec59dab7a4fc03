"""Everything that a run saves, and its way back.

In: the state of a run. Out: self-verifying files, and from them the same state bit for bit. Open `store.py` first (commit,
newest, best, rotate); `saver.py` decides when to save, `resume.py` what may differ on resume, `content.py` holds the schema.
"""
