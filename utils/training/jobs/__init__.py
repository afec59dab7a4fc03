"""Behind `utils.training.job_queue`: from a job's description to its row in a database, and from the row to a training.

config.py     JobConfig: what a job is; its durable form, which any process can run
database.py   one connection to SQLite or PostgreSQL: set-up, schema, clock, errors in plain words
store.py      the rows and their transitions, each one transaction; writes of an owner carry its fencing token
process.py    which process owns a job, and whether that process still exists
lease.py      the thread that extends a lease while a job runs
running.py    from a claimed job to a training in this process
devices.py    the same through torchrun, for a job that asks for several devices
handed.py     what a notebook holds, trained in the same way: for train_live with several devices
"""
