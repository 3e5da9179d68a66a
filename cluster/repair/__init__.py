"""Repair: finding out what replicas lack, and mending it."""
