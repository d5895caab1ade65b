"""The front door: command line, settings, starting and stopping the rest."""
