"""Machines: cards, the backend protocol and one module per machine family."""
