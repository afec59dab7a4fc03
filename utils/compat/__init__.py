"""Documented interfaces of earlier and other systems, each a translation onto the engine with no loop of its own."""
