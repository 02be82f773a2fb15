"""Instruments of the Triton ensemble lab: server, client, growth law, plots, exercise checks."""
