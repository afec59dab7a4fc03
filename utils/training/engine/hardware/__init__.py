"""Capabilities and limits of the machine: precision, fast kernels, memory, energy, recovery from out-of-memory errors.

Each module stands alone and imports nothing else of the engine.
"""
