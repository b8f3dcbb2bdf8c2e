"""Adapters to the engines that run a task over more rows than one process can take. Each is a small module.

`shards` needs no engine, `datatrove` is a step of a datatrove pipeline, `ray` a callable class for Ray Data.
"""
